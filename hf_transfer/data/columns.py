"""Which columns of a dataset are the input, the label and the group."""

import logging
from dataclasses import fields

from datasets import Dataset, Value

from hf_transfer.config.data import SourceConfig
from hf_transfer.data.groups import GROUP, holds_groups, with_group_names
from hf_transfer.data.labels import LabelKind
from hf_transfer.data.multi_label import is_list
from hf_transfer.data.single_label import class_label_names
from hf_transfer.errors import UserError, unknown
from hf_transfer.readers.folders import FILE_FEATURES, TEXT_DTYPES
from hf_transfer.tasks import Task

log = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "labels", "target", "class", "category")
# Of words with tags, and of texts with spans of characters.
TAG_COLUMNS = (
    *("ner_tags", "tags", "labels", "label", "spans", "entities", "annotations"),
    *("pos_tags", "upos", "chunk_tags"),
)


def find_columns(
    train: Dataset, config: SourceConfig, task: Task, needs_label: bool = True
) -> dict[str, str]:
    """Our column name ("image", "audio" or "text", "text_pair", "label", "group") -> the dataset's.

    Raises UserError for flags of another modality, and for columns that are not given and cannot be
    found, do not exist, hold another kind of input or have two roles. Unless `needs_label`, there
    may be no labels.
    """
    for field in fields(config):
        modality = field.metadata.get("modality", task.modality)
        if modality != task.modality and getattr(config, field.name) != field.default:
            raise UserError(
                f"--{field.name} does not belong to {task.name}",
                "leave it out, or use the recipe of another task",
            )
    usual = TAG_COLUMNS if task.labels_words else LABEL_COLUMNS
    label = config.label_column or _first(usual, train.column_names)
    others = [name for name in usual if name in train.column_names and name != label]
    if others and not config.label_column:
        log.info("labels: column %s, not %s; see --label_column", label, ", ".join(others))
    group = getattr(config, "group_column", None)  # only data to learn from have one
    columns = {task.modality: _find_input(train, config, task, (label, group)), "label": label}
    if label is None and not needs_label:
        del columns["label"]
    if config.text_pair_column and task.labels_words:
        raise UserError(
            f"--text_pair_column does not belong to {task.name}", "give one column of words"
        )
    if config.text_pair_column:
        columns["text_pair"] = config.text_pair_column
    if group:
        columns[GROUP] = group
    found = {ours: _require_column(train, ours, theirs, task) for ours, theirs in columns.items()}
    if len(set(found.values())) < len(found):
        raise UserError(
            f"one column is named twice: {', '.join(found.values())}", "inputs are not labels"
        )
    return found


def _find_input(
    train: Dataset, config: SourceConfig, task: Task, others: tuple[str | None, ...]
) -> str | None:
    """The input column: as given, of a usual name, or the only one of its kind; None if unclear."""
    given: str | None = getattr(config, f"{task.modality}_column")
    fitting = [
        name
        for name, feature in train.features.items()
        if holds_inputs(feature, task) and name not in others
    ]
    only = fitting[0] if len(fitting) == 1 else None
    return given or _first(task.column_names, fitting) or only


def _first(usual: tuple[str, ...], columns: list[str]) -> str | None:
    return next((name for name in usual if name in columns), None)


def _require_column(train: Dataset, ours: str, theirs: str | None, task: Task) -> str:
    """The dataset's column. Raises UserError if there is none, or if it holds another input."""
    flag = "--text_pair_column" if ours == "text_pair" else f"--{ours}_column"
    listed = ", ".join(train.column_names)
    if theirs is None:
        raise UserError(
            f"which column holds the {ours} is not clear", f"give {flag}; columns: {listed}"
        )
    if theirs not in train.features:
        error = unknown("column", theirs, train.column_names)
        raise UserError(error.message, f"check {flag}; {error.hint}")
    if not _holds(ours, train.features[theirs], task):
        content = _content(ours, task)
        raise UserError(
            f"the column {theirs!r} holds no {content}", f"check {flag}; columns: {listed}"
        )
    return theirs


def _holds(ours: str, feature: object, task: Task) -> bool:
    """Whether a column of this feature holds what our column of this name does."""
    if ours == GROUP:
        return holds_groups(feature)
    return ours == "label" or holds_inputs(feature, task)


def _content(ours: str, task: Task) -> str:
    if ours in (GROUP, "label"):
        return f"{ours}s"
    return "lists of words" if task.labels_words else f"{task.noun}s"


def holds_inputs(feature: object, task: Task) -> bool:
    """Whether a column of this feature holds inputs of the task's modality."""
    kind = FILE_FEATURES.get(task.modality)
    if kind is not None:
        return isinstance(feature, type(kind)) or _holds_files(feature)
    if task.labels_words:
        return is_list(feature) and _holds_texts(feature.feature)
    return _holds_texts(feature)


def _holds_texts(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype in TEXT_DTYPES


def _holds_files(feature: object) -> bool:
    """Whether a column holds the bytes of files, of whatever kind."""
    if isinstance(feature, dict):
        return "bytes" in feature and _holds_files(feature["bytes"])
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def require_same_columns(
    splits: dict[str, Dataset], columns: dict[str, str], task: Task, kind: LabelKind
) -> None:
    """Raise UserError unless every split has the training split's columns, of the same kinds."""
    label = columns["label"]
    known = class_label_names(splits["train"].features[label])
    for split, rows in splits.items():
        for ours, theirs in columns.items():
            feature = rows.features.get(theirs)
            if feature is None or not _holds(ours, feature, task):
                raise UserError(
                    f"the split {split!r} has no column {theirs!r} of {_content(ours, task)}",
                    "all splits need the same columns",
                )
        if not kind.accepts(rows.features[label]):
            raise UserError(
                f"the split {split!r} has other labels than the training split",
                f"each needs {kind.expected}; "
                "for a test split without labels name another --test_split",
            )
        if class_label_names(rows.features[label]) not in (None, known):
            raise UserError(
                f"the split {split!r} numbers its labels in another order",
                "all splits need the same labels",
            )


def select_columns(rows: Dataset, split: str, columns: dict[str, str]) -> Dataset:
    """A split with our columns and ids, files as such; labels as stored, no other columns."""
    names = dict(zip(columns.values(), columns, strict=True))
    rows = rows.select_columns(list(names)).rename_columns(names)
    for ours, kind in FILE_FEATURES.items():
        feature = rows.features.get(ours)
        is_read_so = isinstance(feature, type(kind)) and feature.decode == kind.decode
        if feature is not None and not is_read_so:
            rows = rows.cast_column(ours, kind)
    if GROUP in rows.features:
        rows = with_group_names(rows)
    return rows.add_column("id", [f"{split}/{row}" for row in range(len(rows))])
