"""One class a row: the names of the classes, and ids in a stable order."""

import re
from collections.abc import Iterable
from typing import Any

from datasets import ClassLabel, Dataset

from hf_transfer.errors import UserError


def coded_names(feature: Any) -> tuple[str, ...] | None:
    """The names that a ClassLabel column, or one of lists of them, numbers; None for all other columns."""
    coded = getattr(feature, "feature", feature)
    return tuple(coded.names) if isinstance(coded, ClassLabel) else None


def label_flaw(feature: Any, known: tuple[str, ...] | None, label: Any) -> str | None:
    """What is wrong with a label as it is stored in a column of kind `feature`, or None.

    `known`: the names that the training split's ClassLabel numbers, None where names are what the rows hold.
    """
    if label is None or (isinstance(label, str) and not label.strip()):
        return "no label"
    if isinstance(feature, ClassLabel):
        count = len(feature.names)
        return (
            None
            if 0 <= label < count
            else f"label out of range: {label} is not one of 0 to {count - 1}"
        )
    if known is not None and str(label) not in known:
        return f"label out of range: {str(label)[:40]!r} is no name of the training split"
    return None


def find_label_names(splits: dict[str, Dataset], column: str) -> tuple[str, ...]:
    """The label names in the order of their ids.

    A ClassLabel keeps its own names and order. Strings, whole numbers and booleans become names, sorted as people
    sort: 0, 1, 2, 10.
    """
    feature = next(iter(splits.values())).features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    values = {
        value for split in splits.values() for value in split.unique(column) if value is not None
    }
    return tuple(str(value) for value in sorted(values, key=natural_order))


def encode_labels(split: Dataset, column: str, names: tuple[str, ...]) -> list[int]:
    """The ids of a split's labels, of which none has a flaw."""
    values = split[column][:]
    if isinstance(split.features[column], ClassLabel):
        return list(values)
    ids = {name: number for number, name in enumerate(names)}
    return [ids[str(value)] for value in values]


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
