"""Rows of one patient, speaker or document stay on one side of every split that is cut."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hf_transfer.config.data import DataConfig
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import UserError


def _frame(rows: int, speakers: int, first: int = 0) -> pd.DataFrame:
    """Texts of two classes by speakers of very different numbers of rows."""
    draw = np.random.default_rng(rows + first)
    shares = draw.dirichlet(np.ones(speakers))
    of_rows = np.concatenate(
        [np.arange(speakers), draw.choice(speakers, rows - speakers, p=shares)]
    )
    return pd.DataFrame(
        {
            "text": [f"text {first + number}" for number in range(rows)],
            "label": draw.choice(["no", "yes"], rows, p=[0.7, 0.3]),
            "speaker": first + of_rows,
        }
    )


def _load(folder: Path, config: dict[str, Any] | None = None, **frames: pd.DataFrame) -> Data:
    for name, frame in frames.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    given: dict[str, Any] = {"group_column": "speaker", **(config or {})}
    return load_data(DataConfig(str(folder), **given), "text-classification", 0)


@pytest.mark.parametrize("speakers", [2, 3, 5, 30, 400])
def test_no_group_stands_on_two_sides_of_the_splits_that_are_cut(
    speakers: int, tmp_path: Path
) -> None:
    data = _load(tmp_path, train=_frame(1000, speakers))
    groups = {split: set(rows["group"][:]) for split, rows in data.splits.items()}
    assert ("validation" in groups) == (speakers > 3)
    assert set().union(*groups.values()) == set(map(str, range(speakers)))
    for one, other in itertools.combinations(groups.values(), 2):
        assert one.isdisjoint(other)
    if speakers >= 30:
        assert len(data.test) == pytest.approx(200, abs=20)
        shares = [np.mean(rows["label"][:]) for rows in data.splits.values()]
        assert max(shares) - min(shares) < 0.03


def test_the_column_of_groups_is_named_among_the_columns(tmp_path: Path) -> None:
    data = _load(tmp_path, train=_frame(40, 5))
    assert data.columns == {"text": "text", "label": "label", "group": "speaker"}
    assert set(data.train.column_names) == {"text", "label", "group", "id"}


def test_groups_that_given_splits_share_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = _frame(20, 4, first=100).assign(speaker=[0, 1, 2, 200] * 5)
    _load(tmp_path, train=_frame(60, 5), test=test)
    assert (
        "the splits train and test share 3 groups of the column 'speaker', with 15 of 20 test rows"
        in caplog.text
    )


def test_groups_that_stand_apart_are_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _load(tmp_path, train=_frame(60, 5), test=_frame(20, 4, first=100))
    assert "share" not in caplog.text


def test_a_few_rows_without_a_group_are_left_out(tmp_path: Path) -> None:
    frame = _frame(300, 20).astype({"speaker": "object"})
    frame.loc[7, "speaker"] = None
    data = _load(tmp_path, train=frame)
    assert data.dropped == ({"id": "train/7", "reason": "no group"},)


def test_an_empty_cell_among_numbers_is_no_group(tmp_path: Path) -> None:
    frame = _frame(300, 20).astype({"speaker": float})
    frame.loc[7, "speaker"] = np.nan
    frame.to_parquet(tmp_path / "train.parquet")
    data = _load(tmp_path)
    assert [row["id"] for row in data.dropped] == ["train/7"]


def test_a_binary_column_of_groups_is_no_label(tmp_path: Path) -> None:
    ones = [0, 1] * 30
    frame = _frame(60, 5).drop(columns="label").assign(red=ones, blue=ones[::-1])
    data = _load(tmp_path, train=frame.assign(speaker=[0, 0, 1, 1] * 15))
    assert data.labels == ("blue", "red")


@pytest.mark.parametrize(
    ("config", "changes", "message", "hint"),
    [
        ({"group_column": "voice"}, {}, "unknown column 'voice'", "check --group_column"),
        ({"group_column": "label"}, {}, "one column is named twice", "inputs"),
        ({}, {"speaker": "Anna"}, "are of one group: speaker 'Anna'", "leave out --group_column"),
        (
            {},
            {"speaker": ["a", "b"] * 30, "label": ["no", "yes"] * 30},
            "no class of the test split has a training example",
            "name another --group_column",
        ),
    ],
)
def test_groups_that_cannot_be_kept_apart_are_one_error_and_a_hint(
    config: dict[str, str], changes: dict[str, Any], message: str, hint: str, tmp_path: Path
) -> None:
    frame = _frame(60, 5).assign(**changes)
    if "label" in changes:
        frame = pd.concat([frame, frame.assign(speaker="c", label="maybe")])
        frame["text"] = [f"text {number}" for number in range(len(frame))]
    with pytest.raises(UserError) as refusal:
        _load(tmp_path, config, train=frame)
    assert message in refusal.value.message
    assert hint in refusal.value.hint


def test_a_test_split_without_the_column_is_refused(tmp_path: Path) -> None:
    test = _frame(20, 4, first=100).drop(columns="speaker")
    with pytest.raises(UserError, match="the split 'test' has no column 'speaker' of groups"):
        _load(tmp_path, train=_frame(60, 5), test=test)
