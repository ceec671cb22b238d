"""Groups: rows of one patient, speaker or document, which are not independent of each other."""

import logging
from collections.abc import Mapping

import numpy as np
from datasets import ClassLabel, Dataset, Value

from hf_transfer.errors import UserError

log = logging.getLogger(__name__)

GROUP = "group"  # our column
NO_GROUP = "no group"  # reason why a row cannot be used


def holds_groups(feature: object) -> bool:
    """Whether a column of this feature can name groups: one text, number or class per row."""
    is_binary = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
    return isinstance(feature, Value | ClassLabel) and not is_binary


def with_group_names(rows: Dataset) -> Dataset:
    """The rows with their groups as texts; None where a cell is empty."""
    # A NaN is not equal to itself.
    values = (None if value == "" or value != value else value for value in rows[GROUP])
    names = [None if value is None else str(value) for value in values]
    return rows.remove_columns(GROUP).add_column(GROUP, names, feature=Value("string"))


def groups_of(rows: Dataset) -> np.ndarray | None:
    """The group of each row (n,), or None where --group_column names none."""
    return np.asarray(rows[GROUP][:]) if GROUP in rows.column_names else None


def check_groups(splits: Mapping[str, Dataset], column: str) -> None:
    """Warn of groups that the training split shares with another, and count them.

    Raises UserError if all training rows are of one group.
    """
    train = set(splits["train"][GROUP][:])
    if len(train) < 2:
        raise UserError(
            f"all {len(splits['train'])} training rows are of one group: "
            f"{column} {next(iter(train), None)!r}",
            "give rows of two groups or more, or leave out --group_column",
        )
    for split, rows in splits.items():
        shared = train.intersection(rows[GROUP][:])
        if split != "train" and shared:
            log.warning(
                "the splits train and %s share %d groups of the column %r, with %d of %d %s rows",
                split,
                len(shared),
                column,
                sum(map(shared.__contains__, rows[GROUP][:])),
                len(rows),
                split,
            )
