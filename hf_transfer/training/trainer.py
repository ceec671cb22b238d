"""transformers' Trainer with the few overrides that a plan needs, each with its reason."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, set_seed
from transformers.trainer_utils import EvalLoopOutput

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.augmentation import Augment
from hf_transfer.data.encode import LENGTHS, Batch, as_it_is
from hf_transfer.data.token_labels import IGNORED
from hf_transfer.errors import UserError
from hf_transfer.models.unpadded import run_unpadded
from hf_transfer.resume.callback import StepFlags, StopSignal, TrainingStateCallback, reduce_flags
from hf_transfer.resume.states import State
from hf_transfer.training.batches import StepBatches, StepLoader, derive_seed
from hf_transfer.training.epochs import MAX_EVALUATIONS
from hf_transfer.training.heartbeat import Heartbeat
from hf_transfer.training.losses import LossFunction
from hf_transfer.training.nan_guard import SMALLER_RATE, NanGuard

log = logging.getLogger(__name__)

HISTORY_KEYS = ("step", "epoch", "loss", "learning_rate", "eval_loss", "eval_accuracy")


class SharedBuffersTrainer(Trainer):
    """Trainer whose processes evaluate, and save, the same model.

    Batches are finished on the device by `finish`, the encoder's. Those whose rows have LENGTHS are
    computed in parts of one length.
    """

    def __init__(self, *, finish: Callable[[Batch], Batch] = as_it_is, **options: Any) -> None:
        self.finish = finish
        super().__init__(**options)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return self.finish(super()._prepare_inputs(inputs))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Trainer's."""
        if LENGTHS in inputs:
            model = partial(run_unpadded, model)
        return super().compute_loss(model, inputs, *args, **options)

    def evaluation_loop(self, *args: Any, **options: Any) -> EvalLoopOutput:
        """Trainer's, with the same buffers in every process."""
        self.broadcast_buffers()
        return super().evaluation_loop(*args, **options)

    def broadcast_buffers(self) -> None:
        """Copy the buffers of the first process to all others.

        Each process has BatchNorm statistics of its own rows, but one model is saved.
        """
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)


class PhaseTrainer(SharedBuffersTrainer):
    """Trainer of one phase of a plan.

    Parameters have learning rates of their own, by name (those without one have that of the
    arguments). Rows come in the order of `batches`, images are augmented with `augment`, and a step
    that is not finite never changes the weights. With a `keeper` (see `save_states_with`), training
    resumes from its state.
    """

    def __init__(
        self,
        *,
        learning_rates: Mapping[str, float],
        batches: StepBatches,
        augment: Augment | None = None,
        stop: StopSignal | None = None,
        **options: Any,
    ) -> None:
        self.learning_rates = learning_rates
        self.batches = batches
        self.augment = augment
        self.stop = stop or StopSignal()
        self.keeper: TrainingStateCallback | None = None
        self.agreed = StepFlags()
        self.position = (-1, 0)  # steps done, batches since then
        super().__init__(**options)
        self.heartbeat = Heartbeat(self.args.ddp_timeout)
        self.guard = NanGuard(self._example_ids, rolls_back=self.args.on_nan == "rollback")

    def save_states_with(self, keeper: TrainingStateCallback) -> None:
        """Save the training states of the phase by this callback, which runs after all others."""
        keeper.trainer = self
        self.keeper = keeper
        self.add_callback(keeper)

    def train_or_resume(self) -> None:
        """Train, from the training state of the keeper if it has one."""
        resumed = self.keeper.resumed if self.keeper else None
        with self.heartbeat.running():
            self.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
        if self.keeper:
            self.keeper.stop_if_signaled()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of `batches`.

        With several processes, Accelerate would repeat the first rows at the end of an epoch.
        """
        return StepLoader(
            self.train_dataset,
            on_batch=self.heartbeat.advance,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, with its groups split by learning rate."""
        optimizer = super().create_optimizer(model)
        names = {tensor: name for name, tensor in (model or self.model).named_parameters()}
        groups = list(optimizer.param_groups)
        optimizer.param_groups.clear()
        for group in groups:
            by_rate: dict[float, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                rate = self.learning_rates.get(names.get(parameter, ""), group["lr"])
                by_rate.setdefault(rate, []).append(parameter)
            for rate, parameters in by_rate.items():
                optimizer.add_param_group({**group, "params": parameters, "lr": rate})
        return optimizer

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **options: Any
    ) -> torch.Tensor:
        """Trainer's, on augmented images; random numbers depend on seed, step and process alone.

        Augmentation is here, because evaluation and prediction do not call this method, and the
        batch is complete on its device: the collator has the processor's images on the CPU, maybe
        in a worker whose random numbers our seed does not govern.
        """
        self.heartbeat.advance()
        step = self.state.global_step
        self.position = (step, self.position[1] + 1 if self.position[0] == step else 0)
        if self.position[1] == 0:
            self.guard.begin_step(self.model, self._tr_loss)
        set_seed(derive_seed(self.args.seed, *self.position, self.args.process_index))
        loss = super().training_step(model, self.augmented(inputs), *args, **options)
        self.guard.record_loss(loss)
        return loss

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """Trainer's. After it, the processes wait for one another."""
        computed = super().compute_loss(*args, **options)
        self.heartbeat.advance()
        return computed

    def _get_grad_norm(
        self, model: torch.nn.Module, grad_norm: float | torch.Tensor | None = None
    ) -> float | torch.Tensor:
        """Trainer's. Between gradient and optimizer, the processes agree on what to do."""
        norm = super()._get_grad_norm(model, grad_norm)
        broken = self.guard.is_broken(norm, scaled=self.accelerator.scaler is not None)
        due = self.keeper.is_due if self.keeper else False
        self.agreed = reduce_flags(self.stop.received, due, broken, self.args.device)
        if self.agreed.broken:
            self._discard_step(model)
        self.guard.count_step(self.state.global_step, self.agreed.broken)
        return norm

    def _discard_step(self, model: torch.nn.Module) -> None:
        """Leave the optimizer no gradient. Raises UserError where such steps are not skipped."""
        self._tr_loss = self.guard.roll_back()
        model.zero_grad()
        if self.guard.rolls_back:
            # The logged loss is the mean over the steps that count.
            self._globalstep_last_logged += 1
            return
        saved = ""
        if self.keeper:
            self.keeper.write()
            self.keeper.wait()
            saved = f"; the state after step {self.state.global_step} is saved"
        raise self.guard.error(self.state.global_step, self.state.max_steps, saved)

    def augmented(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch with its images augmented at random, if there is an augmentation."""
        if self.augment is not None:
            inputs = self._prepare_inputs(inputs)
            inputs["pixel_values"] = self.augment(inputs["pixel_values"])
        return inputs

    def _example_ids(self, step: int) -> list[str]:
        return list(self.train_dataset.select_columns(["id"])[self.batches.rows_of(step)]["id"])

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Saves a state by the keeper: Trainer writes in place, and pickles."""
        if self.keeper:
            self.keeper.save(self.control)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        """Loads strictly, by the model's own names (transformers issues 43701 and 40187)."""
        self.model.load_state_dict(self._resumed.load("weights"), strict=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saved = self._resumed.load("training")
            self.optimizer.load_state_dict(saved["optimizer"])
            self.lr_scheduler.load_state_dict(saved["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._resumed.load("training")["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Loads nothing: every step seeds the generators."""

    def _init_training_state(
        self, max_steps: int, steps: int, epochs: int, *rest: Any
    ) -> tuple[int, int]:
        """Trainer's; a phase that had ended when its state was saved has no epoch left."""
        begun = super()._init_training_state(max_steps, steps, epochs, *rest)
        # Not the intervals of the state: the resumed run may request others.
        self.state.compute_steps(self.args, max_steps)
        return (epochs, 0) if self.keeper and self.keeper.phase_has_ended else begun

    @property
    def _resumed(self) -> State:
        resumed = self.keeper.resumed if self.keeper else None
        assert resumed is not None
        return resumed


def read_history(trainer: Trainer) -> list[dict[str, float]]:
    """The logged losses and metrics, by step. Raises UserError if a loss is not finite."""
    history = []
    losses = []
    for entry in trainer.state.log_history:
        for key in ("loss", "eval_loss"):
            if not math.isfinite(entry.get(key, 0.0)):
                raise UserError(
                    f"the {key} is {entry[key]} at step {entry['step']}",
                    f"check the data, or {SMALLER_RATE}",
                )
        if "loss" in entry or "eval_loss" in entry:
            history.append({key: entry[key] for key in HISTORY_KEYS if key in entry})
            if "loss" in entry:
                losses.append(entry["loss"])
    if losses and losses[-1] > 2 * losses[0]:
        log.warning(
            "the loss rose from %.3g to %.3g: give a smaller --learning_rate", losses[0], losses[-1]
        )
    return history


def validation_metrics(
    loss: LossFunction, has_classes: bool
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics`: the loss of the complete validation split, and the accuracy.

    Trainer's own loss is a mean over batches, in which the examples that a smaller last batch
    repeats for other processes count twice.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        if isinstance(logits, tuple):
            logits = logits[0]
        labels = prediction.label_ids
        value = loss({"logits": torch.from_numpy(logits)}, torch.from_numpy(labels))
        if not has_classes:
            return {"loss": float(value)}
        right = (logits.argmax(-1) == labels)[labels != IGNORED]
        return {"loss": float(value), "accuracy": float(np.mean(right))}

    return compute_metrics


def phase_arguments(training: TrainingConfig, folder: Path, **changes: Any) -> TrainingConfig:
    """TrainingArguments of one phase: the user's with `changes`.

    What Trainer would do with the output folder and the Hub is switched off.
    """
    changes = {
        "eval_steps": training.eval_steps or 1 / MAX_EVALUATIONS,
        "dataloader_num_workers": training.dataloader_num_workers or 0,
        **changes,
    }
    return training.changed(
        output_dir=str(folder),
        push_to_hub=False,
        hub_token=None,  # Trainer pickles its arguments into every checkpoint
        load_best_model_at_end=False,
        report_to=[],  # trackers.py reports
        label_names=["labels"],  # of classes that take them as **kwargs, Trainer finds none
        remove_unused_columns=False,
        **changes,
    )
