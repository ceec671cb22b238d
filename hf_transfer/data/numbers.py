"""A number a row: the labels of a regression."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from hf_transfer.data.labels import require_labelled
from hf_transfer.errors import UserError


def encode_numbers(split: Dataset, column: str, names: tuple[str, ...]) -> list[float]:
    """The numbers in 32 bits, as models answer. Raises UserError if a row has none, or one that is not finite."""
    values = np.array([np.nan if value is None else value for value in split[column]], dtype=np.float64)
    require_labelled(np.flatnonzero(np.isnan(values)).tolist(), len(values), column)
    with np.errstate(over="ignore"):
        short = values.astype(np.float32)
    infinite = np.flatnonzero(~np.isfinite(short))
    if len(infinite):
        row = infinite[0]
        raise UserError(f"row {row} of column {column!r} holds {values[row]}", "mend or remove it, or rescale all")
    return short.tolist()


def require_numbers(values: Sequence[float], names: tuple[str, ...]) -> None:
    """Raise UserError unless there are two different numbers or more."""
    if len(set(values)) < 2:
        raise UserError(
            f"the training split holds one {names[0]} only: {', '.join(map(str, set(values))) or 'none'}",
            "a regression needs examples of different numbers",
        )
