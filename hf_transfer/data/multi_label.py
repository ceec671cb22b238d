"""Multi-label classification: any number of labels per row.

A column of lists, or a text column whose cells separate label names by commas or bars.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeGuard

import numpy as np
from datasets import Dataset, LargeList, List
from sklearn.preprocessing import MultiLabelBinarizer

from hf_transfer.data import single_label
from hf_transfer.data.single_label import class_label_names, natural_order
from hf_transfer.errors import UserError

QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
WHOLE_NUMBERS = re.compile(r"[-\d\s,]+")


def is_list(feature: object) -> TypeGuard[List | LargeList]:
    """Whether a column holds lists."""
    return isinstance(feature, List | LargeList)


def check_label(feature: object, known: tuple[str, ...] | None, labels: Any) -> str | None:
    """Reason why the labels of a row, as stored, cannot be used; None if they can.

    An empty cell of a text column means that no label applies.
    """
    if not is_list(feature):
        return None
    if labels is None:
        return "no label"
    if len(set(labels)) < len(labels):
        return (
            "label listed twice: name each that applies once; rows of zeros and ones are not read"
        )
    check = partial(single_label.check_label, feature.feature, known)
    return next(filter(None, map(check, labels)), None)


def find_label_names(splits: dict[str, Dataset], column: str) -> tuple[str, ...]:
    """Label names in the order of their ids: those of a ClassLabel, else in natural order."""
    known = class_label_names(next(iter(splits.values())).features[column])
    if known is not None:
        return known
    cells = (split[column] for split in splits.values())
    separator = _find_separator(itertools.chain.from_iterable(cells))
    names: set[str] = set()
    for split in splits.values():
        names.update(*_read_names(split, column, separator))
    return natural_order(names)


def encode_labels(split: Dataset, column: str, names: tuple[str, ...]) -> list[list[float]]:
    """Multi-hot rows: a one for each label that applies; an empty list is a row of zeros.

    All labels have passed check_label. Raises UserError if a cell of text names a label twice.
    """
    # Where commas separate, no name holds one: a name with a comma tells that the splits from which
    # the names were read use bars.
    separator = "|" if "," in "".join(names) else _find_separator(split[column])
    sets = _read_names(split, column, separator)
    for present in sets:
        twice = {name for name in present if present.count(name) > 1}
        if twice:
            raise UserError(
                f"a row of column {column!r} names the label {min(twice)!r} twice: "
                + ", ".join(present)[:80],
                "list the labels that apply, each once; rows of zeros and ones are not read",
            )
    return MultiLabelBinarizer(classes=names).fit_transform(sets).astype(float).tolist()


def present_labels(rows: Sequence[Sequence[float]]) -> set[int]:
    """Ids of the labels that apply to at least one row."""
    return set(np.flatnonzero(np.any(rows, axis=0)).tolist())


def require_learnable(rows: Sequence[Sequence[float]], names: tuple[str, ...]) -> None:
    """Raise UserError unless two labels or more apply to some row."""
    present = list(map(names.__getitem__, sorted(present_labels(rows))))
    if len(present) < 2:
        raise UserError(
            f"the training split has one label only: {', '.join(map(repr, present)) or 'none'}",
            "multi-label classification needs two labels or more; "
            "for one, give a column with its yes and no",
        )


def _read_names(split: Dataset, column: str, separator: str) -> list[list[str]]:
    """Label names of each row. An empty cell of a text column names no label."""
    feature = split.features[column]
    if not is_list(feature):
        return [_split_cell(cell, separator) for cell in split[column]]
    known = class_label_names(feature)
    read: Callable[[Any], str] = str if known is None else known.__getitem__
    return [list(map(read, values)) for values in split[column]]


def _split_cell(cell: str | None, separator: str) -> list[str]:
    """Label names in a cell: a list as Python, NumPy or JSON prints it, or separated names."""
    text = (cell or "").strip()
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1]
        if not QUOTED.sub("", inner).strip(", \n"):
            return [found[0] or found[1] for found in QUOTED.findall(inner)]
        if WHOLE_NUMBERS.fullmatch(inner):
            return inner.replace(",", " ").split()
    return list(filter(None, map(str.strip, text.split(separator))))


def _find_separator(cells: Iterable[object]) -> str:
    """Separator of the names in a text column: a bar where there is any, else a comma."""
    return "|" if any(isinstance(cell, str) and "|" in cell for cell in cells) else ","
