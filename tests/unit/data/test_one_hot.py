from typing import Any

import pytest
from datasets import Dataset

from hf_transfer.config.data import DataConfig
from hf_transfer.data.one_hot import join_one_hot

TEXTS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        ({"x": [1, 0, 1], "y": [0, 1, 0]}, ["x", "y", "x"]),
        ({"x": [1, 0, 1], "y": [1, 1, 0]}, [["x", "y"], ["y"], ["x"]]),
        ({"x": [1, 0, 0], "y": [0, 1, 0]}, [["x"], ["y"], []]),
        ({"x": [True, False, True], "y": [False, True, False]}, ["x", "y", "x"]),
        ({"id": [4, 5, 6], "x": [1, 0, 1], "y": [0, 1, 0]}, ["x", "y", "x"]),
    ],
)
def test_columns_of_zeros_and_ones_become_names(
    columns: dict[str, list[int]], labels: list[Any]
) -> None:
    rows = Dataset.from_dict({"text": TEXTS, **columns})
    joined = join_one_hot({"train": rows}, DataConfig("x"))["train"]
    assert joined["label"][:] == labels


@pytest.mark.parametrize(
    ("columns", "config"),
    [
        ({"x": [1, 0, 1]}, {}),  # one column is a class by itself
        ({"x": [1, 0, 1], "y": [0, 1, 0], "label": [1, 2, 1]}, {}),
        ({"x": [1, 0, 1], "y": [0, 1, 0]}, {"label_column": "x"}),
        ({"x": [1, 0, 2], "y": [0, 1, 0]}, {}),
        ({"x": [1, 0, None], "y": [0, 1, 0]}, {}),
        ({"x": ["1", "0", "1"], "y": ["0", "1", "0"]}, {}),
    ],
)
def test_other_columns_stay(columns: dict[str, list[Any]], config: dict[str, str]) -> None:
    rows = Dataset.from_dict({"text": TEXTS, **columns})
    joined = join_one_hot({"train": rows}, DataConfig("x", **config))["train"]
    assert joined.column_names == rows.column_names


def test_a_row_of_another_split_with_two_ones_has_no_single_label() -> None:
    splits = {
        "train": Dataset.from_dict({"text": ["a", "b"], "x": [1, 0], "y": [0, 1]}),
        "test": Dataset.from_dict({"text": ["a", "b"], "x": [1, 0], "y": [1, 1]}),
    }
    assert join_one_hot(splits, DataConfig("x"))["test"]["label"][:] == [None, "y"]
