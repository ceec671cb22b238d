"""The parts of an evaluation that depend on the problem type: metrics of every class, or points."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_transfer.evaluation.intervals import f1_interval, share_interval
from hf_transfer.evaluation.metrics import (
    Counts,
    confusion_matrix,
    count_classes,
    count_labels,
    log_losses,
)
from hf_transfer.evaluation.predict import Predictions
from hf_transfer.evaluation.tags import TagCounts, count_tags, describe_names, resample
from hf_transfer.models.thresholds import PLAIN
from hf_transfer.record import ClassMetrics, ProblemType

MAX_POINTS = 500  # more could not be told apart in a plot
Names = tuple[str, ...]


def describe(predictions: Predictions, label_names: Names, level: float) -> dict[str, Any]:
    """The fields `per_class`, `confusion` and `points` of an Evaluation, where they apply."""
    return FIELDS[predictions.problem_type](predictions, label_names, level)


def count_outputs(outputs: np.ndarray, predictions: Predictions, label_names: Names) -> TagCounts:
    """The counts of words with tags, by row, where these outputs stand for the model's."""
    assert predictions.row_of_word is not None
    labels = predictions.labels
    losses = log_losses(labels, outputs)
    return count_tags(labels, outputs.argmax(-1), losses, predictions.row_of_word, label_names)


def _single_label(predictions: Predictions, label_names: Names, level: float) -> dict[str, Any]:
    matrix = confusion_matrix(predictions.labels, predictions.predicted_labels, len(label_names))
    cells = np.argwhere(matrix)
    if predictions.row_of_word is not None:
        words = count_outputs(predictions.outputs, predictions, label_names)
        per_class = describe_names(words, resample(words), label_names, level)
    else:
        counts = count_classes(predictions.labels, predictions.outputs)
        per_class = _per_class(counts, label_names, level)
    return {
        "per_class": per_class,
        "confusion": np.column_stack([cells, matrix[tuple(cells.T)]]).tolist(),
    }


def _multi_label(predictions: Predictions, label_names: Names, level: float) -> dict[str, Any]:
    threshold = PLAIN if predictions.thresholds is None else predictions.thresholds
    counts = count_labels(predictions.labels, predictions.outputs, threshold)
    return {"per_class": _per_class(counts, label_names, level)}


def _regression(predictions: Predictions, label_names: Names, level: float) -> dict[str, Any]:
    """Pairs of truth and prediction, of rows evenly spread over the split."""
    rows = np.unique(np.linspace(0, len(predictions.ids) - 1, MAX_POINTS).round().astype(int))
    pairs = np.column_stack([predictions.labels[rows], predictions.predicted_labels[rows]])
    rounded = np.vectorize("{:.6g}".format)(pairs).astype(float)
    return {"per_class": [], "points": rounded.tolist()}


def _per_class(counts: Counts, label_names: Names, level: float) -> list[ClassMetrics]:
    rows = []
    table = np.stack([counts.true_positives, counts.predicted, counts.support], 1).astype(int)
    for name, (true_positives, predicted, support) in zip(label_names, table.tolist(), strict=True):
        precision = share_interval(true_positives, predicted, level)
        recall = share_interval(true_positives, support, level)
        f1 = f1_interval(true_positives, predicted, support, level)
        rows.append(ClassMetrics(name, support, precision, recall, f1))
    return rows


FIELDS: dict[ProblemType, Callable[[Predictions, Names, float], dict[str, Any]]] = {
    "single_label_classification": _single_label,
    "multi_label_classification": _multi_label,
    "regression": _regression,
}
