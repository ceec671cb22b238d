from pathlib import Path

import pandas as pd
import pytest

from hf_transfer.config.data import DataConfig
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError


def _frame(first: int, rows: int) -> pd.DataFrame:
    numbers = range(first, first + rows)
    return pd.DataFrame(
        {"text": [f"text {number}" for number in numbers], "label": [n % 2 for n in numbers]}
    )


def _saved(folder: Path, **splits: pd.DataFrame) -> str:
    for name, frame in splits.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    return str(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"test_split": "train"}, "--test_split train is the training split too"),
        ({"validation_split": "train"}, "--validation_split train is the training split too"),
        (
            {"validation_split": "test", "test_split": "test"},
            "--test_split test is the validation split too",
        ),
    ],
)
def test_one_split_has_one_role(config: dict[str, str], message: str, tmp_path: Path) -> None:
    data = _saved(tmp_path, train=_frame(0, 20), test=_frame(20, 20))
    with pytest.raises(UserError) as refusal:
        load_data(DataConfig(data, **config), "text-classification", 0)
    assert refusal.value.message == message
    assert "leave out --" in refusal.value.hint


@pytest.mark.parametrize(
    ("first", "rows", "is_refused"),
    [(0, 20, True), (5, 10, True), (5, 9, False), (5, 20, False), (20, 20, False)],
)
def test_a_test_split_of_training_rows_alone_is_refused(
    first: int, rows: int, is_refused: bool, tmp_path: Path
) -> None:
    data = DataConfig(_saved(tmp_path, train=_frame(0, 20), test=_frame(first, rows)))
    if not is_refused:
        assert len(load_data(data, "text-classification", 0).test) == rows
        return
    with pytest.raises(UserError, match=f"all {rows} rows of the test split are training rows"):
        load_data(data, "text-classification", 0)


@pytest.mark.parametrize(
    ("train", "test", "is_refused"),
    [
        ((0, 1), (-1, -1), True),
        ((-1, 1), (-1, -1), False),
        ((-1, 0), (-1, 0), False),
        ((0, 1), (0, 1), False),
    ],
)
def test_a_split_of_minus_ones_has_no_labels(
    train: tuple[int, int], test: tuple[int, int], is_refused: bool, tmp_path: Path
) -> None:
    frames = {
        name: _frame(first, 20).assign(label=list(labels) * 10)
        for name, first, labels in (("train", 0, train), ("test", 20, test))
    }
    data = DataConfig(_saved(tmp_path, **frames))
    if not is_refused:
        assert load_data(data, "text-classification", 0).labels == tuple(map(str, sorted(train)))
        return
    with pytest.raises(UserError, match="the split 'test' has no labels: all of them are -1"):
        load_data(data, "text-classification", 0)
