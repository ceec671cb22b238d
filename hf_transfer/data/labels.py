"""What a model is to answer: a row a problem type."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

from hf_transfer.config.data import ProblemType
from hf_transfer.data.multi_label import (
    encode_sets,
    find_set_names,
    is_list,
    labels_present,
    require_labels,
    set_flaw,
)
from hf_transfer.data.regression import encode_numbers, number_flaw, require_numbers
from hf_transfer.data.single_label import (
    encode_labels,
    find_label_names,
    label_flaw,
    require_classes,
)
from hf_transfer.data.splits import strata_of_numbers, strata_of_sets
from hf_transfer.errors import UserError

TEXT = r"string|large_string"
NAMES = rf"{TEXT}|bool|u?int\d+"
NUMBERS = r"u?int\d+|float\d+"


@dataclass(frozen=True)
class Target:
    """How the labels of a problem type are read, and what of them stratifies a split."""

    needs: str  # of a column, in words
    fits: Callable[[Any], bool]  # a column's feature
    # A column's feature, the names that the training split fixes, a label as stored -> what is wrong with it, or None
    flaw: Callable[[Any, tuple[str, ...] | None, Any], str | None]
    names: Callable[
        [dict[str, Dataset], str], tuple[str, ...]
    ]  # splits, column -> names in the order of ids
    encode: Callable[
        [Dataset, str, tuple[str, ...]], list[Any]
    ]  # split without flaws, column, names -> a label a row
    feature: Callable[[tuple[str, ...]], Any]  # of the encoded labels
    strata: Callable[[list[Any]], list[int]]
    present: Callable[[list[Any]], set[int]]  # ids of the names that occur
    require: Callable[
        [list[Any], tuple[str, ...]], None
    ]  # raises UserError if nothing can be learned from them


TARGETS: dict[ProblemType, Target] = {
    "single_label_classification": Target(
        needs="one class a row: text or whole numbers, no empty cell",
        fits=lambda feature: isinstance(feature, ClassLabel) or _holds(feature, NAMES),
        flaw=label_flaw,
        names=find_label_names,
        encode=encode_labels,
        feature=lambda names: ClassLabel(names=list(names)),
        strata=list,
        present=set,
        require=require_classes,
    ),
    "multi_label_classification": Target(
        needs="lists of names or whole numbers, or text that separates names with commas or |",
        fits=lambda feature: _lists_labels(feature) or _holds(feature, TEXT),
        flaw=set_flaw,
        names=find_set_names,
        encode=encode_sets,
        feature=lambda names: List(Value("float32")),
        strata=strata_of_sets,
        present=labels_present,
        require=require_labels,
    ),
    "regression": Target(
        needs="numbers: no text and no empty cell",
        fits=lambda feature: _holds(feature, NUMBERS),
        flaw=number_flaw,
        names=lambda splits, column: (column,),
        encode=encode_numbers,
        feature=lambda names: Value("float32"),
        strata=strata_of_numbers,
        present=lambda values: {0},
        require=require_numbers,
    ),
}


def find_problem_type(feature: Any, column: str, asked: ProblemType | None) -> ProblemType:
    """The problem type that the user asked for, else the one of a label column's kind: lists are several labels.

    Real numbers may be a grade or a measure: they are never guessed to be classes or a regression. Raises UserError
    if the column does not fit.
    """
    found: ProblemType = (
        "multi_label_classification" if is_list(feature) else "single_label_classification"
    )
    problem_type = asked or found
    target = TARGETS[problem_type]
    if target.fits(feature):
        return problem_type
    held = f"the label column {column!r} holds {_kind(feature)} values"
    if asked is None and TARGETS["regression"].fits(feature):
        raise UserError(
            held, f"to learn numbers give --problem_type regression; classes need {target.needs}"
        )
    raise UserError(held, f"{problem_type} needs {target.needs}")


def _holds(feature: Any, kinds: str) -> bool:
    return type(feature) is Value and re.fullmatch(kinds, feature.dtype) is not None


def _lists_labels(feature: Any) -> bool:
    # A column of empty lists only has values of no kind.
    return is_list(feature) and (
        isinstance(feature.feature, ClassLabel) or _holds(feature.feature, rf"{NAMES}|null")
    )


def _kind(feature: Any) -> str:
    inner = f"list of {_kind(feature.feature)}" if is_list(feature) else None
    return inner or str(getattr(feature, "dtype", None) or type(feature).__name__)
