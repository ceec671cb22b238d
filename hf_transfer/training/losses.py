"""The loss of each problem type: the mean over all examples of a step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.token_labels import IGNORED, flat_labels
from hf_transfer.errors import UserError
from hf_transfer.models.head import read_logits
from hf_transfer.record import ProblemType

LossFunction = Callable[..., torch.Tensor]
# (logits (n, labels), labels) -> the sum of the losses of all examples
SummedLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def choose_loss(
    problem_type: ProblemType, training: TrainingConfig, labels: list[Any], classes: int
) -> LossFunction:
    """The loss of a problem type: cross entropy, binary cross entropy or squared error."""
    if problem_type != "single_label_classification":
        return mean_loss(SUMMED_LOSSES[problem_type])
    balanced = training.class_weights == "balanced"
    weights = balanced_weights(flat_labels(labels), classes) if balanced else None
    smoothing = training.label_smoothing_factor
    return mean_loss(partial(cross_entropy, weights=weights, smoothing=smoothing))


def mean_loss(summed_loss: SummedLoss) -> LossFunction:
    """The mean loss over all examples of a step, in all processes and accumulated batches.

    For Trainer's `compute_loss_func`. By default Trainer assumes that every model whose forward has
    **kwargs divides its loss by `num_items_in_batch`; BERT and ResNet do not, and their loss and
    gradient come out multiplied by processes and accumulated batches. Trainer counts the numbers in
    `labels`: one an example, or a word, or with several labels one an example and label.
    """

    def loss(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        summed = summed_loss(read_logits(outputs).float(), labels)
        if num_items_in_batch is not None:
            return summed / num_items_in_batch
        return summed / (labels.numel() if labels.ndim < 2 else (labels != IGNORED).sum())

    return loss


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Summed cross entropy of class ids, with `weights` (classes,) and label smoothing.

    (n,) ids, or those of tokens (n, tokens), of which IGNORED ones do not count.
    """
    weight = None if weights is None else weights.to(logits.device)
    return F.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        weight,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed binary cross entropy of rows of zeros and ones (n, labels)."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed squared error of numbers (n,) and one output (n, 1)."""
    return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")


SUMMED_LOSSES: dict[ProblemType, SummedLoss] = {
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
    "regression": squared_error,
}


def balanced_weights(labels: Sequence[int] | np.ndarray, classes: int) -> torch.Tensor:
    """Weights (classes,) that make all classes count the same, as scikit-learn's "balanced".

    A class weighs examples / (classes x examples of the class).
    """
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def require_fitting_flags(
    problem_type: ProblemType, training: TrainingConfig, labels_words: bool = False
) -> None:
    """Raise UserError for training flags that apply only to one class per row, if not given one."""
    if labels_words and training.class_weights == "sampler":
        raise UserError(
            "--class_weights sampler does not fit words with tags: a row has many",
            "give --class_weights balanced, or leave it out",
        )
    if training.thresholds != "default" and problem_type != "multi_label_classification":
        raise UserError(
            f"--thresholds {training.thresholds} does not fit {problem_type}",
            "it is for several labels per row; leave it out",
        )
    used = {
        "class_weights": training.class_weights != "none",
        "label_smoothing_factor": training.label_smoothing_factor != 0,
        "metric_for_best_model": training.metric_for_best_model.endswith("accuracy"),
    }
    for name, is_used in used.items():
        if is_used and problem_type != "single_label_classification":
            raise UserError(
                f"--{name} {getattr(training, name)} does not fit {problem_type}",
                "it is for one class per row; leave it out",
            )
