"""Rows used and rows left out are all rows that a person counts in the source, whatever it is."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from hf_transfer.config.data import DataConfig
from hf_transfer.data.sources import load_data
from hf_transfer.tasks import find_task

ROWS = 40
EMPTY = 7  # the row without an input


def _texts() -> list[dict[str, str | None]]:
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(ROWS)]
    return [{**row, "text": None} if n == EMPTY else row for n, row in enumerate(rows)]


def _write_csv(path: Path, **dialect: object) -> Path:
    with path.open("w", newline="", encoding=str(dialect.pop("encoding", "utf-8"))) as file:
        rows = csv.DictWriter(file, ["text", "label"], **dialect)
        rows.writeheader()
        rows.writerows(_texts())
    return path


def _tsv_with_stray_quotes(folder: Path) -> Path:
    path = _write_csv(folder / "rows.tsv", delimiter="\t")
    lines = path.read_text().splitlines()
    for number in (3, 20):
        lines[number] = f'"{lines[number]}'
    path.write_text("\n".join(lines))
    return path


def _csv_of_two_splits(folder: Path) -> Path:
    frame = pd.DataFrame(_texts())
    (folder / "texts").mkdir()
    frame[:30].to_csv(folder / "texts" / "train.csv", index=False)
    frame[30:].to_csv(folder / "texts" / "test.csv", index=False)
    return folder / "texts"


def _jsonl(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, _texts())))
    return path


def _json(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps({"data": _texts()}))
    return path


def _parquet(folder: Path) -> Path:
    pd.DataFrame(_texts()).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def _saved(folder: Path) -> Path:
    DatasetDict(train=Dataset.from_list(_texts())).save_to_disk(folder / "saved")
    return folder / "saved"


def _saved_alone(folder: Path) -> Path:
    Dataset.from_list(_texts()).save_to_disk(folder / "saved")
    return folder / "saved"


def _text_folders(folder: Path) -> Path:
    for number, row in enumerate(_texts()):
        path = folder / "texts" / str(row["label"]) / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row["text"] or "")
    return folder / "texts"


def _image(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8))


def _class_folders(folder: Path, *above: str) -> Path:
    for number in range(ROWS):
        path = folder.joinpath("images", *above, "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        _image(number).save(path)
        if number == EMPTY:
            path.write_bytes(b"")
    return folder / "images"


def _zip(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder / "images"), "zip", _class_folders(folder)))


def _flat_images(folder: Path) -> Path:
    (folder / "images").mkdir()
    lines = ["file,label", *(f"{n}.png,{'ab'[n % 2]}" for n in range(ROWS))]
    (folder / "images" / "labels.csv").write_text("\n".join(lines))
    for number in range(ROWS):
        if number != EMPTY:
            _image(number).save(folder / "images" / f"{number}.png")
    return folder / "images"


def _images_in_parquet(folder: Path) -> Path:
    path = _class_folders(folder)
    files = sorted(path.rglob("*.png"))
    frame = pd.DataFrame(
        {
            "image": [{"bytes": file.read_bytes() or None, "path": None} for file in files],
            "label": [file.parent.name for file in files],
        }
    )
    frame.to_parquet(folder / "images.parquet")
    return folder / "images.parquet"


SOURCES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "CSV": ("text", lambda folder: _write_csv(folder / "rows.csv")),
    "CSV, every cell in quotes": (
        "text",
        lambda folder: _write_csv(folder / "rows.csv", quoting=csv.QUOTE_ALL),
    ),
    "CSV in UTF-16": ("text", lambda folder: _write_csv(folder / "r.csv", encoding="utf-16")),
    "semicolons": ("text", lambda folder: _write_csv(folder / "rows.csv", delimiter=";")),
    "TSV with stray quotes": ("text", _tsv_with_stray_quotes),
    "CSV of two splits": ("text", _csv_of_two_splits),
    "JSON Lines": ("text", _jsonl),
    "JSON": ("text", _json),
    "Parquet": ("text", _parquet),
    "a saved dataset": ("text", _saved),
    "a saved split": ("text", _saved_alone),
    "text folders": ("text", _text_folders),
    "class folders": ("image", _class_folders),
    "class folders in a split": ("image", lambda folder: _class_folders(folder, "train")),
    "class folders within one": ("image", lambda folder: _class_folders(folder, "photos")),
    "a zip": ("image", _zip),
    "a table beside images": ("image", _flat_images),
    "images in Parquet": ("image", _images_in_parquet),
}


@pytest.mark.parametrize("source", SOURCES)
def test_used_and_dropped_rows_are_all_rows(source: str, tmp_path: Path) -> None:
    modality, write = SOURCES[source]
    config = DataConfig(str(write(tmp_path)))
    data = load_data(config, find_task(f"{modality}-classification"), seed=0)
    assert data.labels == ("a", "b")
    assert len(data.dropped) == 1
    assert sum(map(len, data.splits.values())) + len(data.dropped) == ROWS
    ids = [row for rows in data.splits.values() for row in rows["id"][:]]
    assert len({*ids, *(row["id"] for row in data.dropped)}) == ROWS
