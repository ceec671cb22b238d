"""transformers' Trainer with the few overrides that a plan needs, each with its reason."""

import copy
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, set_seed

from hf_transfer.config import TrainingConfig
from hf_transfer.data.augmentation import Augment
from hf_transfer.errors import UserError
from hf_transfer.resume.callback import (
    StepFlags,
    StopSignal,
    TrainingStateCallback,
    reduce_flags,
)
from hf_transfer.resume.states import State
from hf_transfer.training.batches import StepBatches, StepLoader, mix
from hf_transfer.training.heartbeat import Watch
from hf_transfer.training.losses import LossFunction
from hf_transfer.training.nan_guard import Guard

log = logging.getLogger(__name__)

SHOWN = ("loss", "eval_loss", "eval_accuracy")  # of what Trainer logs, to whoever watches


class OneModelTrainer(Trainer):
    """Trainer whose processes evaluate, and save, one and the same model."""

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """Trainer's, on the same model in every process."""
        self.share_buffers()
        return super().evaluation_loop(*args, **options)

    def share_buffers(self) -> None:
        """Give all processes the buffers of the first: each has its own BatchNorm statistics, one model is saved."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)


class PhaseTrainer(OneModelTrainer):
    """Trainer with rates of their own, an order and states of ours, pictures changed at random, no step that is broken.

    It goes on from the state of its `keeper`, if there is one.
    """

    def __init__(
        self,
        *args: Any,
        rates: Mapping[str, float],
        batches: StepBatches,
        augment: Augment | None = None,
        stop: StopSignal | None = None,
        **options: Any,
    ) -> None:
        self.rates = rates
        self.batches = batches
        self.augment = augment
        self.stop = stop or StopSignal()
        self.keeper: TrainingStateCallback | None = None
        self.agreed = StepFlags()
        self.place = (-1, 0)  # steps made, batches seen since
        super().__init__(*args, **options)
        self.watch = Watch(self.args.ddp_timeout)
        self.guard = Guard(self._examples, rolls_back=self.args.on_nan == "rollback")

    def keep_states(self, keeper: TrainingStateCallback) -> None:
        """Keep the states of the phase by this callback, after all others."""
        keeper.trainer = self
        self.keeper = keeper
        self.add_callback(keeper)

    def learn(self) -> None:
        """Train, from the state that was kept on."""
        resumed = self.keeper.resumed if self.keeper else None
        with self.watch.watching():
            self.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
        if self.keeper:
            self.keeper.stop_if_signaled()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of ours: Accelerate would repeat the first rows at the end of an epoch for several processes."""
        return StepLoader(
            self.train_dataset,
            fetched=self.watch.move,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, its groups split so that each parameter learns at its own rate."""
        optimizer = super().create_optimizer(model)
        rate_of = {
            id(p): self.rates.get(name) for name, p in (model or self.model).named_parameters()
        }
        groups = list(optimizer.param_groups)
        optimizer.param_groups.clear()
        for group in groups:
            rates = [rate_of.get(id(p)) for p in group["params"]]
            for rate in dict.fromkeys(rates):
                own = [p for p, of in zip(group["params"], rates, strict=True) if of == rate]
                optimizer.add_param_group(
                    {**group, "params": own, **({"lr": rate} if rate is not None else {})}
                )
        return optimizer

    def training_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any
    ) -> torch.Tensor:
        """Trainer's, on pictures that are changed afresh, with draws that depend on seed, step and process alone.

        Here, because evaluation and prediction do not come this way, and the batch is in one piece on its device: the
        collator has the processor's pictures on the CPU, maybe in a worker whose draws no seed of ours governs.
        """
        self.watch.move()
        step = self.state.global_step
        self.place = (step, self.place[1] + 1 if self.place[0] == step else 0)
        if self.place[1] == 0:
            self.guard.begin(self.model, self._tr_loss)
        set_seed(mix(self.args.seed, *self.place, self.args.process_index))
        loss = super().training_step(model, self.changed(inputs), *args, **options)
        self.guard.see(loss)
        return loss

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """Trainer's; past it, the processes wait for each other."""
        computed = super().compute_loss(*args, **options)
        self.watch.move()
        return computed

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's; here, between the gradient and the optimizer, the processes agree on what is to be done."""
        norm = super()._get_grad_norm(model, grad_norm)
        broken = self.guard.is_broken(norm, scaled=self.accelerator.scaler is not None)
        due = self.keeper.is_due if self.keeper else False
        self.agreed = reduce_flags(self.stop.received, due, broken, self.args.device)
        if self.agreed.broken:
            self._refuse_step(model)
        self.guard.note(self.state.global_step, self.agreed.broken)
        return norm

    def _refuse_step(self, model: Any) -> None:
        """Make the optimizer's next step an empty one. Raises UserError where such steps are not to be skipped."""
        self._tr_loss = self.guard.undo()
        model.zero_grad()
        if self.guard.rolls_back:
            self._globalstep_last_logged += 1  # the mean of the losses is over the steps that count
            return
        step, kept = self.state.global_step, ""
        if self.keeper:
            self.keeper.write()
            self.keeper.wait()
            kept = f"; the state after step {step} is kept"
        raise self.guard.refusal(step, self.state.max_steps, kept)

    def changed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as a step of training sees it: with --augmentation its pictures are changed at random."""
        if self.augment is not None:
            inputs = self._prepare_inputs(inputs)
            inputs["pixel_values"] = self.augment(inputs["pixel_values"])
        return inputs

    def _examples(self, step: int) -> list[str]:
        return list(self.train_dataset.select_columns(["id"])[self.batches.rows_of(step)]["id"])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Ours: Trainer writes in place, and pickles."""
        if self.keeper:
            self.keeper.save(self.control)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Ours: strict, by the model's own names (transformers issues 43701 and 40187)."""
        self.model.load_state_dict(self._resumed.load("weights"), strict=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            kept = self._resumed.load("training")
            self.optimizer.load_state_dict(kept["optimizer"])
            self.lr_scheduler.load_state_dict(kept["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._resumed.load("training")["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: every step seeds the generators."""

    def _init_training_state(
        self, max_steps: int, steps: int, epochs: int, *rest: Any
    ) -> tuple[int, int]:
        """Trainer's; a phase that had ended when its state was kept has no epoch left."""
        begun = super()._init_training_state(max_steps, steps, epochs, *rest)
        self.state.compute_steps(
            self.args, max_steps
        )  # not those of the state: they may be asked for anew
        return (epochs, 0) if self.keeper and self.keeper.phase_has_ended else begun

    @property
    def _resumed(self) -> State:
        resumed = self.keeper.resumed if self.keeper else None
        assert resumed is not None
        return resumed


class BestStep(TrainerCallback):
    """Keeps the weights of the step that is best on validation, and stops when there is no hope.

    Trainer's load_best_model_at_end restores with strict=False and leaves a mixture of two steps behind for
    architectures whose checkpoints use other names (transformers issues 43701 and 40187). This one copies the
    tensors under the model's own names and restores them strictly.
    """

    def __init__(self, model: torch.nn.Module, metric: str, patience: int | None) -> None:
        self.model, self.patience = model, patience
        self.metric = f"eval_{metric.removeprefix('eval_')}"
        self.sign = -1.0 if metric.endswith("loss") else 1.0
        self.best, self.best_step, self.worse = -math.inf, None, 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any
    ) -> None:
        """Copy the weights if this step is the best so far."""
        value = self.sign * metrics[self.metric]
        if value > self.best:
            self.best, self.best_step, self.worse = value, state.global_step, 0
            self.weights = {
                name: t.detach().to("cpu", copy=True) for name, t in self.model.state_dict().items()
            }
            return
        self.worse += 1
        if self.patience is not None and self.worse >= self.patience:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the best step's weights back, all of them."""
        if self.weights and self.best_step != state.global_step:
            self.model.load_state_dict(self.weights, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """The best step so far."""
        return {
            "best": self.best,
            "step": self.best_step,
            "worse": self.worse,
            "weights": self.weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember it again."""
        self.best, self.best_step, self.worse = state["best"], state["step"], state["worse"]
        self.weights = dict(state["weights"])


class LoggedLines(TrainerCallback):
    """A line of the log for what Trainer would print where there is no progress bar."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Say the newest figures."""
        shown = [f"{name} {logs[name]:.4g}" for name in SHOWN if logs and name in logs]
        if shown and state.is_world_process_zero:
            log.info("step %d of %d: %s", state.global_step, state.max_steps, ", ".join(shown))


class QuietProgress(ProgressCallback):
    """Trainer's progress bar with the newest figures at its end, in place of a line of text each time."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Show the losses beside the bar."""
        if self.training_bar is not None and logs:
            shown = {name: f"{logs[name]:.3f}" for name in SHOWN if name in logs}
            if shown:
                self.training_bar.set_postfix(shown, refresh=False)


def watch_steps(trainer: PhaseTrainer, training: TrainingConfig) -> BestStep | None:
    """What keeps the best step, where one is asked for; and Trainer's bar, or lines in its place."""
    trainer.remove_callback(PrinterCallback if training.disable_tqdm else ProgressCallback)
    trainer.add_callback(LoggedLines() if training.disable_tqdm else QuietProgress())
    if (
        trainer.eval_dataset is None
        or training.eval_strategy == "no"
        or not training.load_best_model_at_end
    ):
        return None
    best = BestStep(trainer.model, training.metric_for_best_model, training.early_stopping_patience)
    trainer.add_callback(best)
    return best


def read_history(trainer: PhaseTrainer) -> list[dict[str, float]]:
    """What was logged, by step. Raises UserError if a loss is not finite: the weights are worth nothing then."""
    kept = ("step", "epoch", "loss", "learning_rate", "eval_loss", "eval_accuracy")
    entries = [
        entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry
    ]
    for entry in entries:
        for key in ("loss", "eval_loss"):
            if not math.isfinite(entry.get(key, 0.0)):
                raise UserError(
                    f"the {key} is {entry[key]} at step {entry['step']}",
                    "give a smaller --learning_rate, or check the data",
                )
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    if losses and losses[-1] > 2 * losses[0]:
        log.warning(
            "the loss rose from %.3g to %.3g: give a smaller --learning_rate", losses[0], losses[-1]
        )
    return [{key: entry[key] for key in kept if key in entry} for entry in entries]


def validation_metrics(loss: LossFunction, has_classes: bool) -> Callable[[Any], dict[str, float]]:
    """What Trainer computes on the validation split: the loss over all of it, and the share of right answers.

    The loss, because Trainer's own is a mean over batches, in which the examples that a smaller last batch repeats for
    other processes count twice.
    """

    def measure(prediction: Any) -> dict[str, float]:
        logits = (
            prediction.predictions[0]
            if isinstance(prediction.predictions, tuple)
            else prediction.predictions
        )
        labels = prediction.label_ids
        measured = {
            "loss": float(loss({"logits": torch.from_numpy(logits)}, torch.from_numpy(labels)))
        }
        if has_classes:
            measured["accuracy"] = float(np.mean(logits.argmax(-1) == labels))
        return measured

    return measure


def phase_arguments(training: TrainingConfig, folder: Path, **changes: Any) -> TrainingConfig:
    """TrainingArguments for one phase: the user's with `changes`, less what Trainer would do behind our back."""
    arguments = copy.copy(training)
    ours = {
        "output_dir": str(folder),
        "push_to_hub": False,
        "hub_token": None,  # Trainer pickles its arguments into every checkpoint
        "load_best_model_at_end": False,
        "remove_unused_columns": False,
        **changes,
    }
    for name, value in ours.items():
        setattr(arguments, name, value)
    return arguments
