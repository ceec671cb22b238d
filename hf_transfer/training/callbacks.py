"""Callbacks of a phase: its best step, and what is shown while it trains."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState

from hf_transfer.config.training_arguments import TrainingConfig

log = logging.getLogger(__name__)

Metrics = dict[str, float]

SHOWN_METRICS = ("loss", "eval_loss", "eval_accuracy")  # of those that Trainer logs


class BestStep(TrainerCallback):
    """Restores the weights of the best step on validation, and stops training early.

    Trainer's load_best_model_at_end restores with strict=False and leaves a mixture of two steps
    for architectures whose checkpoints use other names (transformers issues 43701 and 40187). This
    callback copies the tensors under the model's own names and restores them strictly.

    `metric` is higher-is-better, unless its name ends with "loss". `patience` is the number of
    evaluations in a row without improvement after which training stops; None never stops it.
    """

    def __init__(self, model: torch.nn.Module, metric: str, patience: int | None) -> None:
        self.model = model
        self.metric = f"eval_{metric.removeprefix('eval_')}"
        self.sign = -1.0 if metric.endswith("loss") else 1.0
        self.patience = patience
        self.best_value = -math.inf
        self.best_step: int | None = None
        self.worse = 0  # evaluations since the best one
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(
        self, args: object, state: TrainerState, control: Any, metrics: Metrics, **_: object
    ) -> None:
        """Copy the weights if this step is the best so far."""
        value = self.sign * metrics[self.metric]
        if value > self.best_value:
            self.best_value = value
            self.best_step = state.global_step
            self.worse = 0
            tensors = self.model.state_dict().items()
            self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors}
            return
        self.worse += 1
        if self.patience is not None and self.worse >= self.patience:
            control.should_training_stop = True

    def on_train_end(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Restore all weights of the best step."""
        if self.weights and self.best_step != state.global_step:
            self.model.load_state_dict(self.weights, strict=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best_value,
            "step": self.best_step,
            "worse": self.worse,
            "weights": self.weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best_value = state["best"]
        self.best_step = state["step"]
        self.worse = state["worse"]
        self.weights = dict(state["weights"])


class LogLines(TrainerCallback):
    """Logs a line in place of the dictionary that Trainer prints without a progress bar."""

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: Metrics, **_: object
    ) -> None:
        shown = _format_metrics(logs, ".4g")
        if shown and state.is_world_process_zero:
            text = ", ".join(map(" ".join, shown.items()))
            log.info("step %d of %d: %s", state.global_step, state.max_steps, text)


class ProgressBar(ProgressCallback):
    """Trainer's progress bar with the newest metrics at its end, not in a new line each time."""

    def on_log(
        self, args: object, state: object, control: object, logs: Metrics, **_: object
    ) -> None:
        shown = _format_metrics(logs, ".3f")
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown, refresh=False)


def _format_metrics(logs: Metrics, form: str) -> dict[str, str]:
    return {name: format(logs[name], form) for name in SHOWN_METRICS if name in logs}


def add_callbacks(trainer: Trainer, training: TrainingConfig) -> BestStep | None:
    """The callback of the best step if --load_best_model_at_end applies, now part of the trainer.

    Trainer's own progress callback is replaced by ProgressBar, or by LogLines with --disable_tqdm.
    """
    is_quiet = trainer.args.disable_tqdm
    trainer.remove_callback(PrinterCallback if is_quiet else ProgressCallback)
    trainer.add_callback(LogLines() if is_quiet else ProgressBar())
    evaluates = trainer.eval_dataset is not None and training.eval_strategy != "no"
    if not evaluates or not training.load_best_model_at_end:
        return None
    best = BestStep(trainer.model, training.metric_for_best_model, training.early_stopping_patience)
    trainer.add_callback(best)
    return best
