"""LABEL_KINDS: how the labels of each problem type are read and encoded, a row per problem type."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

from hf_transfer.data import multi_label, regression, single_label, token_labels
from hf_transfer.data.multi_label import is_list
from hf_transfer.data.splits import strata_of_numbers, strata_of_sets
from hf_transfer.errors import UserError
from hf_transfer.record import ProblemType
from hf_transfer.tasks import Task

TEXT = r"string|large_string"
NAMES = rf"{TEXT}|bool|u?int\d+"
NUMBERS = r"u?int\d+|float\d+"

SINGLE: ProblemType = "single_label_classification"

Names = tuple[str, ...]


@dataclass(frozen=True)
class LabelKind:
    """How the labels of a problem type are recognized, checked, encoded and stratified."""

    expected: str  # content of a label column, in words
    accepts: Callable[[object], bool]  # whether a column of this feature can hold such labels
    # Feature of a column, label names that the training split fixes, stored label -> the reason why
    # the label cannot be used, or None.
    check_label: Callable[[object, Names | None, Any], str | None]
    # Splits, column -> label names in the order of their ids.
    find_label_names: Callable[[dict[str, Dataset], str], Names]
    # Split whose labels have all passed check_label, column, label names -> encoded label per row.
    encode_labels: Callable[[Dataset, str, Names], list[Any]]
    encoded_feature: Callable[[Names], object]  # of the encoded labels
    strata: Callable[[list[Any]], list[int]]  # stratum of each encoded label
    present: Callable[[list[Any]], set[int]]  # ids of the label names that occur
    # Raises UserError if nothing can be learned from these encoded labels.
    require_learnable: Callable[[list[Any], Names], None]


LABEL_KINDS: dict[ProblemType, LabelKind] = {
    "single_label_classification": LabelKind(
        expected="one class per row: text or whole numbers, no empty cell",
        accepts=lambda feature: isinstance(feature, ClassLabel) or _has_dtype(feature, NAMES),
        check_label=single_label.check_label,
        find_label_names=single_label.find_label_names,
        encode_labels=single_label.encode_labels,
        encoded_feature=lambda names: ClassLabel(names=list(names)),
        strata=list,
        present=set,
        require_learnable=single_label.require_learnable,
    ),
    "multi_label_classification": LabelKind(
        expected="lists of names or whole numbers, or text that separates names with commas or |",
        accepts=lambda feature: _lists_labels(feature) or _has_dtype(feature, TEXT),
        check_label=multi_label.check_label,
        find_label_names=multi_label.find_label_names,
        encode_labels=multi_label.encode_labels,
        encoded_feature=lambda names: List(Value("float32")),
        strata=strata_of_sets,
        present=multi_label.present_labels,
        require_learnable=multi_label.require_learnable,
    ),
    "regression": LabelKind(
        expected="numbers: no text and no empty cell",
        accepts=lambda feature: _has_dtype(feature, NUMBERS),
        check_label=regression.check_label,
        find_label_names=regression.find_label_names,
        encode_labels=regression.encode_labels,
        encoded_feature=lambda names: Value("float32"),
        strata=strata_of_numbers,
        present=lambda values: {0},
        require_learnable=regression.require_learnable,
    ),
}


# The labels of words: one class for each, in a list per row.
WORD_TAGS = LabelKind(
    expected="a list of tags in each row, one for each word",
    accepts=lambda feature: _lists_labels(feature),
    check_label=token_labels.check_label,
    find_label_names=token_labels.find_label_names,
    encode_labels=token_labels.encode_labels,
    encoded_feature=lambda names: List(Value("int64")),
    strata=token_labels.strata,
    present=token_labels.present_tags,
    require_learnable=token_labels.require_learnable,
)


def find_label_kind(
    problem_type: ProblemType, task: Task, per_class: int | None = None
) -> LabelKind:
    """How the labels of a task's data are read.

    Raises UserError for a number of examples `per_class` where a row has not one class.
    """
    if per_class is not None and (task.labels_words or problem_type != SINGLE):
        counted = task.name if task.labels_words else problem_type
        raise UserError(
            f"examples per class can be counted for one class per row, not for {counted}",
            "leave out --examples_per_class; --max_train_samples limits all examples together",
        )
    return WORD_TAGS if task.labels_words else LABEL_KINDS[problem_type]


def find_problem_type(
    feature: object, column: str, requested: ProblemType | None, labels_words: bool = False
) -> ProblemType:
    """The requested problem type, or the default for a label column: lists are multi-label.

    Where words have labels, each has one class. Real numbers may be a grade or a measure, so
    neither classes nor a regression is ever guessed from them. Raises UserError if the column does
    not fit the problem type.
    """
    is_multi_label = is_list(feature) and not labels_words
    default: ProblemType = (
        "multi_label_classification" if is_multi_label else "single_label_classification"
    )
    problem_type = requested or default
    if labels_words and problem_type != default:
        raise UserError(
            f"--problem_type {requested} does not belong to words with tags",
            "each word has one tag: leave it out",
        )
    kind = WORD_TAGS if labels_words else LABEL_KINDS[problem_type]
    if kind.accepts(feature):
        return problem_type
    held = f"the label column {column!r} holds {_type_name(feature)} values"
    if labels_words:
        raise UserError(held, f"token-classification needs {kind.expected}")
    if requested is None and LABEL_KINDS["regression"].accepts(feature):
        raise UserError(
            held, f"to learn numbers give --problem_type regression; classes need {kind.expected}"
        )
    raise UserError(held, f"{problem_type} needs {kind.expected}")


def _has_dtype(feature: object, dtypes: str) -> bool:
    return isinstance(feature, Value) and re.fullmatch(dtypes, feature.dtype) is not None


def _lists_labels(feature: object) -> bool:
    # The values of a column of empty lists have the type null.
    return is_list(feature) and (
        isinstance(feature.feature, ClassLabel) or _has_dtype(feature.feature, rf"{NAMES}|null")
    )


def _type_name(feature: object) -> str:
    if is_list(feature):
        return f"list of {_type_name(feature.feature)}"
    return str(getattr(feature, "dtype", None) or type(feature).__name__)
