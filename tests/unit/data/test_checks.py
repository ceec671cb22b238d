import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from hf_transfer.config.data import DataConfig
from hf_transfer.data.checks import CheckedRow, check_rows
from hf_transfer.data.prepared import prepare_images
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.tasks import find_task

IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")


def _image(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _bomb() -> bytes:
    """A bitmap of few bytes that says it has more pixels than memory holds."""
    content = bytearray(_image("BMP"))
    content[18:26] = (60_000).to_bytes(4, "little") * 2
    return bytes(content)


def _images(values: list[dict[str, Any]]) -> Dataset:
    ids, labels = [f"train/{n}" for n in range(len(values))], [0] * len(values)
    features = Features({"image": Image(), "label": Value("int64"), "id": Value("string")})
    return Dataset(
        pa.table({"image": values, "label": labels, "id": ids}, schema=features.arrow_schema)
    )


def _texts(folder: Path, bad: dict[int, str], rows: int = 300) -> Path:
    """A CSV file of texts of two classes; `bad` replaces lines."""
    lines = [bad.get(number, f"text {number},{'xy'[number % 2]}") for number in range(rows)]
    path = folder / "rows.csv"
    path.write_text("\n".join(["text,label", *lines]))
    return path


@pytest.fixture(scope="module")
def damaged(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 images of two classes, and four that cannot be read."""
    folder = tmp_path_factory.mktemp("damaged") / "images"
    for copy in range(10):
        for name in ("bright", "dark"):
            for path in (picture_folder / name).iterdir():
                (folder / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / name / f"{copy}-{path.name}")
    content = (folder / "dark" / "0-0.png").read_bytes()
    (folder / "dark" / "empty.png").write_bytes(b"")
    (folder / "dark" / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "dark" / "text.png").write_text("a page that says 404")
    (folder / "bright" / "bomb.bmp").write_bytes(_bomb())
    return folder


def _bad(rows: Dataset) -> list[CheckedRow]:
    images = (
        prepare_images({"train": rows}).splits["train"].facts if "image" in rows.features else ()
    )
    return [row for row in check_rows(rows, lambda label: None, images) if row.reason]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"bytes": b"", "path": "x.png"}, "the image's file is empty"),
        (
            {"bytes": b"no image", "path": "x.png"},
            "the image cannot be read: its format is not known",
        ),
        (
            {"bytes": _image()[:200], "path": None},
            "the image cannot be read: image file is truncated",
        ),
        (
            {"bytes": _image("JPEG")[:-100], "path": None},
            "the image cannot be read: image file is truncated",
        ),
        (
            {"bytes": _bomb(), "path": None},
            "the image cannot be read: Image size (3600000000 pixels) exceeds",
        ),
        ({"bytes": None, "path": "{here}/gone.png"}, "the image's file is missing"),
        ({"bytes": None, "path": "{here}"}, "the image's file cannot be read: Is a directory"),
        ({"bytes": None, "path": None}, "no image"),
        (None, "no image"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_the_reason(
    image: Any, reason: str, tmp_path: Path
) -> None:
    if image and image["path"]:
        image = {**image, "path": image["path"].format(here=tmp_path)}
    good = {"bytes": _image(), "path": None}
    (row,) = _bad(_images([good, image, good]))
    found = str(row.reason)
    assert row.id == "train/1"
    assert found.startswith(reason)
    assert str(tmp_path) not in found
    assert " at 0x" not in found  # an address in memory differs between processes


@pytest.mark.parametrize(
    ("text", "pair"), [(None, "a"), ("", "a"), (" \n\t", "a"), ("a", None), ("a", "  ")]
)
def test_an_empty_text_is_bad_alone_and_in_a_pair(text: str | None, pair: str | None) -> None:
    rows = {
        "text": ["a", text],
        "text_pair": ["b", pair],
        "label": [0, 0],
        "id": ["test/0", "test/1"],
    }
    (row,) = _bad(Dataset.from_dict(rows))
    assert (row.id, row.reason) == ("test/1", "no second text" if text == "a" else "no text")


def test_a_row_is_named_once_for_its_label_first() -> None:
    rows = Dataset.from_dict({"text": ["", ""], "label": [0, 1], "id": ["test/0", "test/1"]})
    found = check_rows(rows, lambda label: "no label" if label else None)
    assert [(row.id, row.reason) for row in found] == [
        ("test/0", "no text"),
        ("test/1", "no label"),
    ]


def test_images_that_cannot_be_read_are_left_out_and_their_reasons_hold_no_path(
    damaged: Path,
) -> None:
    data = load_data(DataConfig(str(damaged)), IMAGES, seed=0)
    assert sorted(row["reason"].split(":")[0] for row in data.dropped) == [
        *("the image cannot be read",) * 3,
        "the image's file is empty",
    ]
    gone, kept = (
        {row["id"] for row in data.dropped},
        {row for rows in data.splits.values() for row in rows["id"]},
    )
    assert len(kept) == 800
    assert gone | kept == {f"train/{number}" for number in range(804)}
    for row in data.dropped:
        assert not any(
            part in row["reason"] for part in (str(damaged), damaged.parent.name, ".png", ".bmp")
        )
    assert {image.size for image in data.test["image"]} == {(16, 16)}


def test_the_same_rows_are_left_out_whenever_and_with_whatever_seed(damaged: Path) -> None:
    first, again = (load_data(DataConfig(str(damaged)), IMAGES, seed=0) for _ in range(2))
    assert (first.dropped, first.fingerprint) == (again.dropped, again.fingerprint)
    assert [rows["id"][:] for rows in first.splits.values()] == [
        rows["id"][:] for rows in again.splits.values()
    ]
    few = load_data(DataConfig(str(damaged), examples_per_class=2), IMAGES, seed=1)
    assert few.dropped == first.dropped
    assert few.test["id"][:] == first.test["id"][:]


def test_rows_keep_the_ids_and_labels_that_they_have_in_the_source(tmp_path: Path) -> None:
    path = _texts(tmp_path, {0: ",x", 7: '"  ",y', 150: "no label,"})
    data = load_data(DataConfig(str(path)), TEXTS, seed=0)
    assert list(data.dropped) == [
        {"id": "train/0", "reason": "no text"},
        {"id": "train/7", "reason": "no text"},
        {"id": "train/150", "reason": "no label"},
    ]
    for rows in data.splits.values():
        for row in rows:
            number = int(row["id"].split("/")[1])
            assert row["text"] == f"text {number}"
            assert data.labels[row["label"]] == "xy"[number % 2]


def test_a_class_of_bad_rows_alone_is_no_class(tmp_path: Path) -> None:
    data = load_data(DataConfig(str(_texts(tmp_path, {5: ",rare", 6: "text 6,"}))), TEXTS, seed=0)
    assert data.labels == ("x", "y")
    assert len(data.dropped) == 2


def test_a_split_without_bad_rows_is_whole(text_file: Path) -> None:
    assert load_data(DataConfig(str(text_file), label_column="animal"), TEXTS, seed=0).dropped == ()


def test_every_split_is_checked_and_its_rows_are_named_in_order(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        path = _texts(tmp_path, {20: ",x", 3: ",y"})
        text = path.read_text().replace("text ", f"{split} text ")
        path.unlink()
        (tmp_path / f"{split}.csv").write_text(text)
    data = load_data(DataConfig(str(tmp_path)), TEXTS, seed=0)
    assert [row["id"] for row in data.dropped] == [
        f"{s}/{n}" for s in ("train", "validation", "test") for n in (3, 20)
    ]
    assert {name: len(rows) for name, rows in data.splits.items()} == dict.fromkeys(
        data.splits, 298
    )


def test_what_is_left_out_is_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _texts(tmp_path, dict.fromkeys(range(4), ",x"), rows=400)
    with caplog.at_level(logging.WARNING):
        load_data(DataConfig(str(path)), TEXTS, seed=0)
    (line,) = caplog.messages
    assert line == (
        "left out 4 of 400 examples, which cannot be used: train/0 (no text), train/1 (no text), train/2 (no text), ..."
    )


@pytest.mark.parametrize(
    ("bad", "rows", "ends"),
    [(1, 30, False), (2, 30, False), (3, 300, False), (3, 299, True), (2, 2, True)],
)
def test_more_than_two_rows_and_one_per_cent_of_a_split_end_the_run(
    bad: int, rows: int, ends: bool, tmp_path: Path
) -> None:
    config = DataConfig(str(_texts(tmp_path, dict.fromkeys(range(bad), ",x"), rows)))
    if not ends:
        assert len(load_data(config, TEXTS, seed=0).dropped) == bad
        return
    with pytest.raises(UserError) as refusal:
        load_data(config, TEXTS, seed=0)
    assert refusal.value.message.startswith(
        f"{bad} of {rows} rows of the split 'train' ({100 * bad / rows:.3g} %)"
    )
    assert "train/0 (no text)" in refusal.value.message
    assert "fix or remove them" in refusal.value.hint


def test_too_many_bad_rows_are_not_all_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        load_data(DataConfig(str(_texts(tmp_path, dict.fromkeys(range(50), ",x")))), TEXTS, seed=0)
    assert "train/2 (no text), ..." in refusal.value.message
    assert "train/3" not in refusal.value.message


@pytest.mark.parametrize("line", [",x", '" ",x', "text 9,"])
def test_the_first_bad_row_ends_the_run_if_that_is_requested(line: str, tmp_path: Path) -> None:
    path = _texts(tmp_path, {9: line, 12: line})
    with pytest.raises(
        UserError, match=r"cannot use the row train/9 \(no (text|label)\)"
    ) as refusal:
        load_data(DataConfig(str(path), on_bad_example="raise"), TEXTS, seed=0)
    assert "--on_bad_example skip" in refusal.value.hint


def test_a_damaged_image_ends_the_run_if_that_is_requested(damaged: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot use the row train/\d+ bright/bomb.bmp \(the image"
    ):
        load_data(DataConfig(str(damaged), on_bad_example="raise"), IMAGES, seed=0)


def _save(folder: Path, labels: Callable[[str, int], int | None], rows: int = 300) -> Path:
    """A saved dataset of texts with ten classes in splits train and test; `labels`: split, row -> the stored id."""
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=[f"c{n}" for n in range(10)])}
    )
    splits = {
        split: Dataset(
            pa.table(
                {
                    "text": [f"text {n}" for n in range(rows)],
                    "label": [labels(split, n) for n in range(rows)],
                },
                schema=features.arrow_schema,
            )
        )
        for split in ("train", "test")
    }
    DatasetDict(splits).save_to_disk(folder)
    return folder


def test_labels_out_of_range_are_left_out(tmp_path: Path) -> None:
    odd = {4: 12, 8: -1, 11: None}
    folder = _save(
        tmp_path / "rows", lambda split, n: odd.get(n, n % 10) if split == "train" else n % 10
    )
    data = load_data(DataConfig(str(folder)), TEXTS, seed=0)
    assert list(data.dropped) == [
        {"id": "train/4", "reason": "label out of range: 12 is not one of 0 to 9"},
        {"id": "train/8", "reason": "label out of range: -1 is not one of 0 to 9"},
        {"id": "train/11", "reason": "no label"},
    ]
    assert all(row["text"].endswith(str(row["label"])) for row in data.train)


@pytest.mark.parametrize("choice", ["skip", "raise"])
def test_a_test_split_without_labels_is_refused_before_all_else_is_read(
    choice: Any, tmp_path: Path
) -> None:
    folder = _save(
        tmp_path / "rows", lambda split, n: -1 if split == "test" else n % 10 if n else None
    )
    with pytest.raises(
        UserError, match=r"test/0 \(label out of range: -1 is not one of 0 to 9\)"
    ) as refusal:
        load_data(DataConfig(str(folder), on_bad_example=choice), TEXTS, seed=0)
    assert "for a split without labels name another --test_split" in refusal.value.hint


def test_numbers_that_are_none_are_left_out_of_a_regression(tmp_path: Path) -> None:
    prices = [float("nan") if n == 3 else float("inf") if n == 5 else n / 4 for n in range(300)]
    pd.DataFrame({"text": [f"t{n}" for n in range(300)], "price": prices}).to_parquet(
        tmp_path / "rows.parquet"
    )
    config = DataConfig(
        str(tmp_path / "rows.parquet"), label_column="price", problem_type="regression"
    )
    data = load_data(config, TEXTS, seed=0)
    assert [(row["id"], row["reason"].split(":")[0]) for row in data.dropped] == [
        ("train/3", "no label"),
        ("train/5", "label out of range"),
    ]
    assert data.labels == ("price",)
    assert all(float(row["text"][1:]) / 4 == row["label"] for row in data.train)
