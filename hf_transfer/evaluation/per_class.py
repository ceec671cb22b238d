"""What a record tells beside the metrics: the figures of every class, or the answers themselves."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_transfer.config import ProblemType
from hf_transfer.evaluation.intervals import f1_interval, share_interval
from hf_transfer.evaluation.metrics import Counts, confusion_matrix, count_classes, count_labels
from hf_transfer.evaluation.predict import Predictions
from hf_transfer.record import ClassMetrics

MOST_POINTS = 500  # more would not be told apart in a picture


def describe(predictions: Predictions, names: tuple[str, ...], level: float) -> dict[str, Any]:
    """The entry "per_class" of a record, empty for a regression, and the one that its picture is made from."""
    return DETAILS[predictions.problem_type](predictions, names, level)


def _classes(predictions: Predictions, names: tuple[str, ...], level: float) -> dict[str, Any]:
    matrix = confusion_matrix(predictions.labels, predictions.answers, len(names))
    return {
        "per_class": _per_class(
            count_classes(predictions.labels, predictions.outputs), names, level
        ),
        "confusion": [
            [int(r), int(c), int(matrix[r, c])] for r, c in zip(*np.nonzero(matrix), strict=True)
        ],
    }


def _labels(predictions: Predictions, names: tuple[str, ...], level: float) -> dict[str, Any]:
    return {
        "per_class": _per_class(count_labels(predictions.labels, predictions.outputs), names, level)
    }


def _numbers(predictions: Predictions, names: tuple[str, ...], level: float) -> dict[str, Any]:
    """Pairs of truth and answer, of rows evenly spread over the split."""
    rows = np.unique(np.linspace(0, len(predictions.ids) - 1, MOST_POINTS).round().astype(int))
    pairs = zip(predictions.labels[rows], predictions.answers[rows], strict=True)
    return {
        "per_class": [],
        "points": [[float(f"{truth:.6g}"), float(f"{answer:.6g}")] for truth, answer in pairs],
    }


def _per_class(counts: Counts, names: tuple[str, ...], level: float) -> list[ClassMetrics]:
    rows = []
    for label, name in enumerate(names):
        right, answered, present = (
            int(of[label]) for of in (counts.right, counts.answered, counts.present)
        )
        rows.append(
            ClassMetrics(
                label=name,
                n=present,
                precision=share_interval(right, answered, level),
                recall=share_interval(right, present, level),
                f1=f1_interval(right, answered + present, level),
            )
        )
    return rows


DETAILS: dict[ProblemType, Callable[[Predictions, tuple[str, ...], float], dict[str, Any]]] = {
    "single_label_classification": _classes,
    "multi_label_classification": _labels,
    "regression": _numbers,
}
