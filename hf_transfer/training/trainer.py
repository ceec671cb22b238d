"""transformers' Trainer with the few overrides that a plan needs, each with its reason."""

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import ProgressCallback, Trainer, TrainerCallback

from hf_transfer.config import TrainingConfig
from hf_transfer.training.augment import Augment

log = logging.getLogger(__name__)

SHOWN = ("loss", "eval_loss", "eval_accuracy")  # of what Trainer logs, to whoever watches


class PhaseTrainer(Trainer):
    """Trainer with rates of their own, batches of ours, pictures changed at random, and one model in all processes."""

    def __init__(
        self,
        *args: Any,
        rates: Mapping[str, float] | None = None,
        sampler: Sampler[int] | None = None,
        augment: Augment | None = None,
        **options: Any,
    ) -> None:
        self.rates = rates or {}
        self.sampler = sampler
        self.augment = augment
        super().__init__(*args, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, its groups split so that each parameter learns at its own rate."""
        optimizer = super().create_optimizer(model)
        rate_of = {id(p): self.rates.get(name) for name, p in (model or self.model).named_parameters()}
        groups = list(optimizer.param_groups)
        optimizer.param_groups.clear()
        for group in groups:
            rates = [rate_of.get(id(p)) for p in group["params"]]
            for rate in dict.fromkeys(rates):
                own = [p for p, of in zip(group["params"], rates, strict=True) if of == rate]
                optimizer.add_param_group({**group, "params": own, **({"lr": rate} if rate is not None else {})})
        return optimizer

    def _get_train_sampler(self, *args: Any, **options: Any) -> Sampler[int] | None:
        return self.sampler or super()._get_train_sampler(*args, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> torch.Tensor:
        """Trainer's, on pictures that are changed afresh.

        Here, because evaluation and prediction do not come this way, and the batch is in one piece on its device: the
        collator has the processor's pictures on the CPU, maybe in a worker whose draws no seed of ours governs.
        """
        return super().training_step(model, self.changed(inputs), *args, **options)

    def changed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as a step of training sees it: with --augmentation its pictures are changed at random."""
        if self.augment is not None:
            inputs = self._prepare_inputs(inputs)
            inputs["pixel_values"] = self.augment(inputs["pixel_values"])
        return inputs

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """Trainer's, on the same model in every process."""
        self.share_buffers()
        return super().evaluation_loop(*args, **options)

    def share_buffers(self) -> None:
        """Give all processes the buffers of the first: each has its own BatchNorm statistics, one model is saved."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)


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

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Copy the weights if this step is the best so far."""
        value = self.sign * metrics[self.metric]
        if value > self.best:
            self.best, self.best_step, self.worse = value, state.global_step, 0
            self.weights = {name: t.detach().to("cpu", copy=True) for name, t in self.model.state_dict().items()}
            return
        self.worse += 1
        if self.patience is not None and self.worse >= self.patience:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the best step's weights back, all of them."""
        if self.weights and self.best_step != state.global_step:
            self.model.load_state_dict(self.weights, strict=True)


class LoggedLines(TrainerCallback):
    """A line of the log for what Trainer would print where there is no progress bar."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Say the newest figures."""
        shown = [f"{name} {logs[name]:.4g}" for name in SHOWN if logs and name in logs]
        if shown and state.is_world_process_zero:
            log.info("step %d of %d: %s", state.global_step, state.max_steps, ", ".join(shown))


class QuietProgress(ProgressCallback):
    """Trainer's progress bar with the newest figures at its end, in place of a line of text each time."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the losses beside the bar."""
        if self.training_bar is not None and logs:
            shown = {name: f"{logs[name]:.3f}" for name in SHOWN if name in logs}
            if shown:
                self.training_bar.set_postfix(shown, refresh=False)


def accuracy_of(prediction: Any) -> dict[str, float]:
    """The share of right answers on the validation split, for Trainer's log."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(logits.argmax(-1) == prediction.label_ids))}


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
