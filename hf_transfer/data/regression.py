"""A number a row: the labels of a regression."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from hf_transfer.errors import UserError

LARGEST = float(np.finfo(np.float32).max)  # models answer in 32 bits


def number_flaw(feature: Any, known: tuple[str, ...] | None, value: Any) -> str | None:
    """What is wrong with a number as it is stored, or None."""
    if value is None or math.isnan(value):
        return "no label"
    return (
        None
        if -LARGEST <= value <= LARGEST
        else f"label out of range: {value:g} is no finite number of 32 bits"
    )


def encode_numbers(split: Dataset, column: str, names: tuple[str, ...]) -> list[float]:
    """The numbers in 32 bits; none has a flaw."""
    return np.array(split[column][:], dtype=np.float32).tolist()


def require_numbers(values: Sequence[float], names: tuple[str, ...]) -> None:
    """Raise UserError unless there are two different numbers or more."""
    if len(set(values)) < 2:
        raise UserError(
            f"the training split holds one {names[0]} only: {', '.join(map(str, set(values))) or 'none'}",
            "a regression needs examples of different numbers",
        )
