"""Any number of labels a row: lists of names, or a column of text that names them between commas or bars."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, LargeList, List

from hf_transfer.data.single_label import coded_names, label_flaw, natural_order
from hf_transfer.errors import UserError


def is_list(feature: object) -> bool:
    """Whether a column holds lists."""
    return isinstance(feature, List | LargeList)


def set_flaw(feature: Any, known: tuple[str, ...] | None, labels: Any) -> str | None:
    """What is wrong with a row's labels as they are stored, or None; an empty cell of text names no label."""
    if not is_list(feature):
        return None
    if labels is None:
        return "no label"
    if len(set(labels)) < len(labels):
        return (
            "label listed twice: name each that applies once; rows of zeros and ones are not read"
        )
    return next(filter(None, (label_flaw(feature.feature, known, label) for label in labels)), None)


def find_set_names(splits: dict[str, Dataset], column: str) -> tuple[str, ...]:
    """The names of all labels in the order of their ids: ClassLabel's own, else sorted as people sort."""
    known = coded_names(next(iter(splits.values())).features[column])
    if known is not None:
        return known
    separator = _separator(cell for split in splits.values() for cell in split[column])
    sets = [names for split in splits.values() for names in _read(split, column, separator)]
    return tuple(sorted(set(itertools.chain.from_iterable(sets)), key=natural_order))


def encode_sets(split: Dataset, column: str, names: tuple[str, ...]) -> list[list[float]]:
    """A row of zeros and ones, a one for each label that applies; an empty list is a row of zeros.

    No list has a flaw. Raises UserError if a cell of text names a label twice.
    """
    # No name has a comma where commas separate, so names with one say what the separator of the other splits was.
    sets = _read(
        split, column, "|" if any("," in name for name in names) else _separator(split[column])
    )
    ids = {name: number for number, name in enumerate(names)}
    encoded = np.zeros((len(sets), len(names)))
    for row, given in enumerate(sets):
        twice = {name for name in given if given.count(name) > 1}
        if twice:
            raise UserError(
                f"a row of column {column!r} names the label {min(twice)!r} twice: {', '.join(given)[:80]}",
                "list the labels that apply, each once; rows of zeros and ones are not read",
            )
        encoded[row, [ids[name] for name in given]] = 1.0
    return encoded.tolist()


def labels_present(rows: Sequence[Sequence[float]]) -> set[int]:
    """The ids of the labels that apply to a row or more."""
    return set(np.flatnonzero(np.any(rows, axis=0)).tolist())


def require_labels(rows: Sequence[Sequence[float]], names: tuple[str, ...]) -> None:
    """Raise UserError unless two labels or more apply to some row."""
    present = [names[label] for label in sorted(labels_present(rows))]
    if len(present) < 2:
        raise UserError(
            f"the training split has one label only: {', '.join(map(repr, present)) or 'none'}",
            "multi-label classification needs two labels or more; for one, give a column with its yes and no",
        )


def _read(split: Dataset, column: str, separator: str) -> list[list[str]]:
    """The names in each row. An empty cell of a text column names no label."""
    feature = split.features[column]
    if is_list(feature):
        known = coded_names(feature)
        return [
            [str(value) if known is None else known[value] for value in given]
            for given in split[column]
        ]
    cells = (cell or "" for cell in split[column])
    return [[name.strip() for name in cell.split(separator) if name.strip()] for cell in cells]


def _separator(cells: Iterable[Any]) -> str:
    """What stands between the names of a text column: bars where there are any, else commas."""
    return "|" if any(isinstance(cell, str) and "|" in cell for cell in cells) else ","
