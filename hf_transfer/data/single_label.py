"""Single-label classification: one class per row."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from hf_transfer.errors import UserError


def class_label_names(feature: object) -> tuple[str, ...] | None:
    """Names of a ClassLabel column, or of a column of lists of ClassLabel; None for any other."""
    inner = getattr(feature, "feature", feature)
    return tuple(inner.names) if isinstance(inner, ClassLabel) else None


def check_label(feature: object, known: tuple[str, ...] | None, label: Any) -> str | None:
    """Reason why a label, as stored in a column of this feature, cannot be used; None if it can.

    `known`: names of the training split's ClassLabel, None where the rows themselves hold names.
    """
    if label is None or (isinstance(label, str) and not label.strip()):
        return "no label"
    if isinstance(feature, ClassLabel):
        count = len(feature.names)
        if not 0 <= label < count:
            return f"label out of range: {label} is not one of 0 to {count - 1}"
    elif known is not None and str(label) not in known:
        return f"label out of range: {str(label)[:40]!r} is no name of the training split"
    return None


def find_label_names(splits: dict[str, Dataset], column: str) -> tuple[str, ...]:
    """Label names in the order of their ids.

    A ClassLabel keeps its own names and order. Strings, whole numbers and booleans become names in
    natural order: 0, 1, 2, 10.
    """
    feature = next(iter(splits.values())).features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    values = set().union(*(split.unique(column) for split in splits.values()))
    return natural_order(map(str, values - {None}))


def encode_labels(split: Dataset, column: str, names: tuple[str, ...]) -> list[int]:
    """Class id of each row. All labels have passed check_label."""
    values = split[column][:]
    if isinstance(split.features[column], ClassLabel):
        return list(values)
    ids = dict(zip(names, range(len(names)), strict=True))
    return [ids[str(value)] for value in values]


def require_learnable(labels: Iterable[int], names: tuple[str, ...]) -> None:
    """Raise UserError unless two classes or more occur among the labels."""
    present = set(map(names.__getitem__, labels))
    if len(present) < 2:
        raise UserError(
            f"the training split has one class only: {', '.join(map(repr, present)) or 'none'}",
            "a classifier needs examples of two classes or more",
        )


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Different names: whole numbers by value, from -2 to 10; others with the numbers in them so.

    Names that differ in leading zeros alone are ordered as texts, the same in every process.
    """
    different = set(names)
    if all(re.fullmatch(r"-?\d+", name) for name in different):
        return tuple(sorted(different, key=lambda name: (int(name), name)))
    return tuple(sorted(different, key=lambda name: (_words_and_numbers(name), name)))


def similar_names(names: Sequence[str]) -> list[list[str]]:
    """The groups of label names that differ by case or spaces alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _words_and_numbers(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
