"""One-hot columns: a column of zeros and ones per label, joined into one column of names."""

import itertools
import logging
from collections.abc import Mapping

from datasets import Dataset, List, Value

from hf_transfer.config.data import DataConfig
from hf_transfer.data.columns import LABEL_COLUMNS
from hf_transfer.data.single_label import class_label_names

log = logging.getLogger(__name__)

JOINED = LABEL_COLUMNS[0]


def join_one_hot(splits: Mapping[str, Dataset], config: DataConfig) -> dict[str, Dataset]:
    """The splits with a column `label`, where two or more columns of zeros and ones stand for one.

    One name per row where every training row has a single one, else a list of names.
    """
    train = splits["train"]
    named = config.label_column or any(name in train.column_names for name in LABEL_COLUMNS)
    others = [name for name in train.column_names if name != config.group_column]
    columns = [] if named else [name for name in others if _is_binary(train, name)]
    if len(columns) < 2 or any(set(columns) - set(rows.column_names) for rows in splits.values()):
        return dict(splits)
    cells = (train[name][:] for name in columns)
    is_single = all(sum(row) == 1 for row in zip(*cells, strict=True))
    kind = "one class per row" if is_single else "several labels per row"
    log.info("columns of zeros and ones are read as labels, %s: %s", kind, ", ".join(columns))
    return {split: _join(rows, columns, is_single) for split, rows in splits.items()}


def _is_binary(rows: Dataset, column: str) -> bool:
    feature = rows.features[column]
    is_whole = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "bool"))
    return is_whole and class_label_names(feature) is None and set(rows.unique(column)) == {0, 1}


def _join(rows: Dataset, columns: list[str], is_single: bool) -> Dataset:
    cells = zip(*(rows[name][:] for name in columns), strict=True)
    names = [list(itertools.compress(columns, row)) for row in cells]
    rows = rows.remove_columns(columns)
    if not is_single:
        return rows.add_column(JOINED, names, feature=List(Value("string")))
    single = [row[0] if len(row) == 1 else None for row in names]
    return rows.add_column(JOINED, single, feature=Value("string"))
