"""Inputs without a need for labels: every row of a dataset that can be read, as it is stored."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from hf_transfer.config.data import DataConfig
from hf_transfer.data.checks import check_split, stored_rows, summarize_bad
from hf_transfer.data.columns import find_columns, select_columns
from hf_transfer.data.multi_label import is_list
from hf_transfer.data.prepared import Preparation, prepare_images
from hf_transfer.data.sounds import sound_facts
from hf_transfer.data.sources import Data, read_source
from hf_transfer.errors import UserError, unknown
from hf_transfer.tasks import MODALITIES, Task

log = logging.getLogger(__name__)

# Label names of a head that nobody asks: a classifier has two or more.
NO_LABELS = ("0", "1")


@dataclass(frozen=True)
class Inputs:
    """All splits under their own names, and of their rows the labels (names, or None) and files.

    In the `data` every label is 0: an encoder wants one. A file is named as below the dataset's
    folder; None where an input is none.
    """

    data: Data
    labels: Mapping[str, list[Any]]
    files: Mapping[str, list[str | None]]


def load_inputs(
    config: DataConfig, task: Task, split: str | None = None, preparation: Preparation | None = None
) -> Inputs:
    """The inputs of a split, or of all, less those that cannot be read, which the log names.

    Raises UserError as load_data does, except for labels: they may be missing.
    """
    raw, origin = read_source(config, task.modality, needs_label=False)
    if split is not None and split not in raw:
        raise unknown("split", split, raw)
    chosen = {name: rows for name, rows in raw.items() if split in (None, name) and len(rows)}
    if not chosen:
        raise UserError(f"{config.dataset_name!r} has no rows", "name another dataset or split")
    stored = {}
    labels = {}
    for name, rows in chosen.items():
        columns = find_columns(rows, config, task, needs_label=False)
        label = columns.pop("label", None)
        labels[name] = [None] * len(rows) if label is None else _label_names(rows, label)
        stored[name] = _with_zeros(select_columns(rows, name, columns), task)
    prepared = prepare_images(stored, preparation) if task.has_images else None
    splits = {}
    for name, rows in stored.items():
        facts = prepared.splits[name].facts if prepared else sound_facts(rows, config.max_seconds)
        bad, _ = check_split(name, rows, None, config.on_bad_example == "skip", facts)
        if bad:
            log.warning("left out %d of %d inputs: %s", len(bad), len(rows), summarize_bad(bad))
        good = np.flatnonzero(~np.isin(rows["id"][:], [row.id for row in bad]))
        splits[name] = rows.select(good)
        labels[name] = list(map(labels[name].__getitem__, good))
    data = Data(
        splits=splits,
        labels=NO_LABELS,
        origin=origin,
        fingerprint="",
        task=task,
        max_length=getattr(config, MODALITIES[task.modality].limit or "", None),
        prepared=prepared,
    )
    root = Path(str(config.dataset_name)).expanduser().absolute()
    files = {}
    for name, rows in splits.items():
        inputs = rows.select_columns(task.modality)
        files[name] = [_file_name(row[task.modality], root) for row in stored_rows(inputs)]
    return Inputs(data, labels, files)


def with_zeros(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with 0 as its label, or with one for each of its words."""
    text = row.get("text")
    return {"id": "", **row, "label": [0] * len(text) if isinstance(text, list) else 0}


def _with_zeros(rows: Dataset, task: Task) -> Dataset:
    """The rows with 0 as every label: of words, one for each."""
    zeros: list[Any] = [0] * len(rows)
    if task.labels_words:
        zeros = [[0] * len(words or ()) for words in rows["text"]]
    return rows.add_column("label", zeros)


def _file_name(stored: Any, root: Path) -> str | None:
    """The path below `root` of an input as stored, or else its name; None if it is no file."""
    path = stored.get("path") if isinstance(stored, dict) else None
    if not path:
        return None
    file = Path(path)
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _label_names(rows: Dataset, column: str) -> list[Any]:
    """The labels as stored, numbers of classes as their names; a number below 0 is no label."""
    feature = rows.features[column]
    values = rows[column][:]
    inner = feature.feature if is_list(feature) else feature
    if not isinstance(inner, ClassLabel):
        return list(values)
    names = dict(enumerate(inner.names))
    if inner is feature:
        return [names.get(value) for value in values]
    return [None if row is None else list(map(names.get, row)) for row in values]
