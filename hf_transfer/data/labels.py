"""One class a row: the names of the classes, and ids in a stable order."""

import re
from collections.abc import Iterable
from typing import Any

from datasets import ClassLabel, Dataset

from hf_transfer.errors import UserError


def find_label_names(splits: dict[str, Dataset], column: str) -> tuple[str, ...]:
    """The label names in the order of their ids.

    A ClassLabel keeps its own names and order. Strings, whole numbers and booleans become names, sorted as people
    sort: 0, 1, 2, 10.
    """
    feature = next(iter(splits.values())).features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    values = {value for split in splits.values() for value in split.unique(column) if value is not None}
    return tuple(str(value) for value in sorted(values, key=natural_order))


def encode_labels(split: Dataset, column: str, names: tuple[str, ...]) -> list[int]:
    """The ids of a split's labels. Raises UserError if a row has none."""
    values = split[column][:]
    coded = isinstance(split.features[column], ClassLabel)
    ids = {name: number for number, name in enumerate(names)}
    found = [-1 if value is None else int(value) if coded else ids.get(str(value), -1) for value in values]
    require_labelled([row for row, label in enumerate(found) if label < 0], len(found), column)
    return found


def require_labelled(missing: list[int], rows: int, column: str) -> None:
    """Raise UserError if the column lacks a label in the rows numbered `missing`."""
    if missing:
        raise UserError(
            f"{len(missing)} of {rows} rows have no label in column {column!r}, the first is row {missing[0]}",
            "label or remove them; for a test split without labels name another --test_split",
        )


def require_classes(labels: Iterable[int], names: tuple[str, ...]) -> None:
    """Raise UserError unless the labels hold two classes or more."""
    present = {names[label] for label in labels}
    if len(present) < 2:
        raise UserError(
            f"the training split has one class only: {', '.join(map(repr, present)) or 'none'}",
            "a classifier needs examples of two classes or more",
        )


def natural_order(value: Any) -> list[tuple[int, int, str]]:
    """A sort key that orders numbers within text by their value."""
    parts = re.split(r"(\d+)", str(value))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
