"""What training makes small: the mean over all examples of a step, for each problem type."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import UserError
from hf_transfer.models.head import read_logits
from hf_transfer.record import ProblemType

LossFunction = Callable[..., torch.Tensor]
# (logits (n, labels), labels) -> the losses of all answers, summed
Total = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def choose_loss(
    problem_type: ProblemType, training: TrainingConfig, labels: list[Any], classes: int
) -> LossFunction:
    """The loss of a problem type: cross entropy, binary cross entropy of every label, or squared error."""
    if problem_type != "single_label_classification":
        return mean_loss(TOTALS[problem_type])
    weights = balanced_weights(labels, classes) if training.class_weights == "balanced" else None
    return mean_loss(
        partial(cross_entropy, weights=weights, smoothing=training.label_smoothing_factor)
    )


def mean_loss(total: Total) -> LossFunction:
    """The mean loss over all examples of a step, whatever the number of processes and of accumulated batches.

    Left to itself, Trainer takes every model whose forward has **kwargs for one that divides by `num_items_in_batch`;
    BERT and ResNet do not, and their loss and gradient come out multiplied by processes and accumulated batches.
    Trainer counts the numbers in `labels`: one an example, or with several labels one an example and label.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        summed = total(read_logits(outputs).float(), labels)
        return summed / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    return loss


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Of the classes' ids (n,), each class with its weight."""
    weight = None if weights is None else weights.to(logits.device)
    return F.cross_entropy(
        logits, labels, weight=weight, reduction="sum", label_smoothing=smoothing
    )


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of rows of zeros and ones (n, labels), every label for itself."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of numbers (n,) and one output (n, 1)."""
    return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")


TOTALS: dict[ProblemType, Total] = {
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
    "regression": squared_error,
}


def balanced_weights(labels: list[int], classes: int) -> torch.Tensor:
    """Weights (classes,) with which every class counts the same: examples / (classes x examples of the class)."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def require_fitting_flags(problem_type: ProblemType, training: TrainingConfig) -> None:
    """Raise UserError for flags of training that mean something for one class a row only, if that is not it."""
    if problem_type == "single_label_classification":
        return
    given = {
        "class_weights": training.class_weights != "none",
        "label_smoothing_factor": training.label_smoothing_factor != 0,
        "metric_for_best_model": training.metric_for_best_model.endswith("accuracy"),
    }
    for name, meant in given.items():
        if meant:
            raise UserError(
                f"--{name} {getattr(training, name)} does not fit {problem_type}",
                "it is for one class a row; leave it out",
            )
