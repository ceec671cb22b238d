"""Regression: a number per row."""

import math
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from hf_transfer.errors import UserError

LARGEST = float(np.finfo(np.float32).max)  # models predict in 32 bits


def check_label(feature: object, known: tuple[str, ...] | None, value: float | None) -> str | None:
    """Reason why a number, as stored, cannot be used; None if it can."""
    if value is None or math.isnan(value):
        return "no label"
    if not -LARGEST <= value <= LARGEST:
        return f"label out of range: {value:g} is no finite number of 32 bits"
    return None


def find_label_names(splits: dict[str, Dataset], column: str) -> tuple[str, ...]:
    """The one label name: that of the column."""
    return (column,)


def encode_labels(split: Dataset, column: str, names: tuple[str, ...]) -> list[float]:
    """The numbers in 32 bits. All have passed check_label."""
    return np.array(split[column][:], dtype=np.float32).tolist()


def require_learnable(values: Sequence[float], names: tuple[str, ...]) -> None:
    """Raise UserError unless there are two different numbers or more."""
    different = set(values)
    if len(different) < 2:
        held = ", ".join(map(str, different)) or "none"
        raise UserError(
            f"the training split holds one {names[0]} only: {held}",
            "a regression needs examples of different numbers",
        )
