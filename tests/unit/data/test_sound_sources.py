"""Sounds in folders, tables and datasets: every way in gives the same rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Audio, Dataset, load_dataset

from hf_transfer.config.data import DataConfig
from hf_transfer.data.encode import sound_features
from hf_transfer.data.sounds import read_sound
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import UserError
from tests.sounds import PITCHES, RATE, encoded, tone

TASK = "audio-classification"


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[str, str]]:
    """Names of 20 files of sounds in tmp_path/data/clips, and their labels."""
    (tmp_path / "data" / "clips").mkdir(parents=True)
    named = []
    for number in range(20):
        label = ("high", "low")[number % 2]
        name = f"clips/{number:02}.flac"
        sound = encoded(tone(PITCHES[label], 0.1, seed=number), format="FLAC")
        (tmp_path / "data" / name).write_bytes(sound["bytes"])
        named.append((name, label))
    return named


def _frame(files: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(files, columns=["clip", "label"])


def _bytes(path: Path) -> dict[str, Any]:
    return {"bytes": path.read_bytes(), "path": path.name}


def _class_folders(folder: Path, files: list[tuple[str, str]]) -> Path:
    for name, label in files:
        (folder / label).mkdir(exist_ok=True)
        (folder / name).rename(folder / label / Path(name).name)
    (folder / "clips").rmdir()
    return folder


def _metadata(folder: Path, files: list[tuple[str, str]]) -> Path:
    _frame(files).rename(columns={"clip": "file_name"}).to_csv(folder / "metadata.csv", index=False)
    return folder


def _csv(folder: Path, files: list[tuple[str, str]]) -> Path:
    _frame(files).to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


def _absolute_json_lines(folder: Path, files: list[tuple[str, str]]) -> Path:
    path = folder / "elsewhere" / "rows.jsonl"
    path.parent.mkdir()
    frame = _frame([(str(folder / name), label) for name, label in files])
    frame.to_json(path, orient="records", lines=True)
    return path


def _parquet_of_bytes(folder: Path, files: list[tuple[str, str]]) -> Path:
    rows = [{"clip": (folder / name).read_bytes(), "label": label} for name, label in files]
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def _parquet_of_paths(folder: Path, files: list[tuple[str, str]]) -> Path:
    _frame(files).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def _parquet_as_on_the_hub(folder: Path, files: list[tuple[str, str]]) -> Path:
    rows = [{"clip": _bytes(folder / name), "label": label} for name, label in files]
    made = Dataset.from_list(rows).cast_column("clip", Audio(sampling_rate=8_000))
    (folder / "hub").mkdir()
    made.to_parquet(str(folder / "hub" / "train.parquet"))
    return folder / "hub"


def _saved(folder: Path, files: list[tuple[str, str]]) -> Path:
    path = _parquet_as_on_the_hub(folder, files)
    made = load_dataset(str(path), split="train", cache_dir=str(folder / "cache"))
    assert isinstance(made.features["clip"], Audio)
    made.save_to_disk(str(folder / "saved"))
    return folder / "saved"


WAYS: dict[str, Callable[[Path, list[tuple[str, str]]], Path]] = {
    "class folders": _class_folders,
    "metadata.csv": _metadata,
    "a CSV file of paths": _csv,
    "JSON Lines of absolute paths": _absolute_json_lines,
    "Parquet of bytes": _parquet_of_bytes,
    "Parquet of paths": _parquet_of_paths,
    "Parquet with the type Audio": _parquet_as_on_the_hub,
    "a saved dataset": _saved,
}


def _levels(data: Data) -> list[tuple[str, float]]:
    """Of every row, the class and the loudest sample."""
    rows = [row for split in data.splits.values() for row in split]
    read = [(row["label"], read_sound(row["audio"], RATE, 30).max()) for row in rows]
    return sorted((data.labels[label], round(float(level), 4)) for label, level in read)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_gives_the_same_sounds(
    way: str, files: list[tuple[str, str]], tmp_path: Path
) -> None:
    expected = sorted(
        (label, round(float(tone(PITCHES[label], 0.1, seed=number).max()), 4))
        for number, (_, label) in enumerate(files)
    )
    data = load_data(DataConfig(str(WAYS[way](tmp_path / "data", files))), TASK, 0)
    assert data.max_length == 30
    assert data.train.features["audio"] == Audio(decode=False)
    for (label, level), (own_label, own_level) in zip(expected, _levels(data), strict=True):
        assert label == own_label
        assert level == pytest.approx(own_level, abs=2e-4)


def test_the_column_of_a_single_table_keeps_its_name(
    files: list[tuple[str, str]], tmp_path: Path
) -> None:
    config = DataConfig(str(_csv(tmp_path / "data", files)), audio_column="clip")
    assert load_data(config, TASK, 0).columns == {"audio": "clip", "label": "label"}


def test_a_file_that_is_missing_is_left_out(files: list[tuple[str, str]], tmp_path: Path) -> None:
    path = _csv(tmp_path / "data", files)
    (tmp_path / "data" / files[3][0]).unlink()
    data = load_data(DataConfig(str(path)), TASK, 0)
    assert data.dropped == ({"id": "train/3", "reason": "the sound's file is missing"},)


def test_texts_and_images_beside_sounds_are_passed_over_and_counted(
    files: list[tuple[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _class_folders(tmp_path / "data", files)
    (folder / "low" / "01.txt").write_text("what is said")
    (folder / "cover.png").write_bytes(b"1")
    with caplog.at_level("INFO"):
        data = load_data(DataConfig(str(folder)), TASK, 0)
    assert sum(map(len, data.splits.values())) == 20
    assert "not read: 1 files (.png), 1 files (.txt)" in caplog.messages


def test_plain_features_of_sounds_have_a_row_for_each(
    files: list[tuple[str, str]], tmp_path: Path
) -> None:
    data = load_data(DataConfig(str(_csv(tmp_path / "data", files))), TASK, 0)
    train, test = sound_features(data.train, data.test)
    assert (len(train), len(test)) == (len(data.train), len(data.test))
    assert train.shape[1] == test.shape[1] == 402


def test_more_bad_sounds_than_an_accident_are_an_error(
    files: list[tuple[str, str]], tmp_path: Path
) -> None:
    path = _csv(tmp_path / "data", files)
    for name, _ in files[:3]:
        (tmp_path / "data" / name).write_text("no sound")
    with pytest.raises(UserError, match="3 of 20 rows") as refusal:
        load_data(DataConfig(str(path)), TASK, 0)
    assert "clips/00.flac (the sound cannot be read: Format not recognised.)" in str(refusal.value)
