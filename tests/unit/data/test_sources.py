import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL.PngImagePlugin import PngImageFile

from hf_transfer.config.data import DataConfig
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.tasks import find_task

IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")


def test_a_folder_of_images_by_class_is_read(picture_folder: Path) -> None:
    data = load_data(DataConfig(str(picture_folder)), IMAGES, seed=0)
    assert data.labels == ("bright", "dark")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 64, "test": 16}
    assert data.origin.id == f"local:{picture_folder.name}"


def test_folders_named_after_splits_hold_their_own_classes(
    picture_folder: Path, tmp_path: Path
) -> None:
    for image in picture_folder.rglob("*.png"):
        split = "test" if int(image.stem) < 10 else "train"
        copy = tmp_path / "pets" / split / image.relative_to(picture_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy)
    data = load_data(DataConfig(str(tmp_path / "pets")), IMAGES, seed=0)
    assert data.labels == ("bright", "dark")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 60, "test": 20}
    assert data.cut == ()


def test_a_csv_file_is_read_and_its_columns_are_named(text_file: Path) -> None:
    data = load_data(DataConfig(str(text_file), label_column="animal"), TEXTS, seed=0)
    assert data.labels == ("bird", "cat", "dog")
    assert set(data.train.column_names) == {"text", "label", "id"}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_files_named_after_splits_become_splits(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c", "d"], "label": ["x", "y", "x", "y"]})
    for split in ("train", "validation", "test"):
        path = tmp_path / f"{split}.{ending}"
        if ending == "csv":
            frame.to_csv(path, index=False)
        elif ending == "parquet":
            frame.to_parquet(path)
        else:
            path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
    data = load_data(DataConfig(str(tmp_path)), TEXTS, seed=0)
    assert {name: len(rows) for name, rows in data.splits.items()} == {
        "train": 4,
        "validation": 4,
        "test": 4,
    }


def test_missing_splits_are_cut_stratified_and_do_not_change_with_the_seed() -> None:
    first, second = (
        load_data(DataConfig("builtin:docstrings"), TEXTS, seed=seed) for seed in (0, 1)
    )
    assert len(first.splits["validation"]) == pytest.approx(0.15 * 1736, abs=5)
    assert first.splits["validation"]["id"][:] == second.splits["validation"]["id"][:]
    assert not set(first.train["id"][:]) & set(first.splits["validation"]["id"][:])


def test_limited_labels_are_all_that_is_learned_from() -> None:
    data = load_data(DataConfig("builtin:digits", examples_per_class=10), IMAGES, seed=0)
    assert len(data.train) == 100
    assert data.validation is None
    assert len(data.test) == 500


def test_a_sample_limits_the_training_rows_only() -> None:
    data = load_data(DataConfig("builtin:digits", max_train_samples=50), IMAGES, seed=0)
    assert len(data.train) == 50
    assert len(data.test) == 500


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    prints = []
    for name, texts in (("one", "ab"), ("two", "ab"), ("three", "ac")):
        path = tmp_path / name / "rows.csv"
        path.parent.mkdir()
        pd.DataFrame({"text": [t * 3 for t in texts * 10], "label": ["x", "y"] * 10}).to_csv(
            path, index=False
        )
        prints.append(load_data(DataConfig(str(path)), TEXTS, seed=0).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_labels_are_no_inputs(text_file: Path) -> None:
    with pytest.raises(UserError, match="one column is named twice"):
        load_data(
            DataConfig(str(text_file), text_column="animal", label_column="animal"), TEXTS, seed=0
        )


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        (DataConfig("builtin:digit"), "unknown builtin dataset 'digit'", "did you mean 'digits'"),
        (DataConfig("./nowhere"), "no folder or file './nowhere'", "--dataset_name"),
        (
            DataConfig("builtin:digits", image_column="img"),
            "unknown column 'img'",
            "choices: image, label",
        ),
        (
            DataConfig("builtin:digits", image_column="image", label_column="image"),
            "one column is named twice",
            "inputs are not labels",
        ),
        (DataConfig("builtin:digits", test_split="dev"), "unknown split 'dev'", "train, test"),
        (
            DataConfig("builtin:docstrings"),
            "which column holds the image is not clear",
            "--image_column",
        ),
        (
            DataConfig("builtin:docstrings", image_column="text"),
            "the column 'text' holds no image",
            "columns: text",
        ),
        (
            DataConfig("builtin:digits", max_length=8),
            "--max_length does not belong to image-classification",
            "leave",
        ),
    ],
)
def test_what_is_wrong_with_a_source_is_said_in_one_line(
    config: DataConfig, message: str, hint: str
) -> None:
    with pytest.raises(UserError) as refusal:
        load_data(config, IMAGES, seed=0)
    assert message in refusal.value.message
    assert hint in refusal.value.hint


def test_data_carry_their_task_and_the_length_of_their_texts(text_file: Path) -> None:
    config = DataConfig(str(text_file), label_column="animal", max_length=9)
    data = load_data(config, TEXTS, seed=0)
    assert (data.task, data.max_length) == (TEXTS, 9)
    assert load_data(DataConfig("builtin:digits"), IMAGES, seed=0).max_length is None


def test_numbers_that_are_all_different_point_to_a_regression(tmp_path: Path) -> None:
    rows = "".join(f"text {number},{number}\n" for number in range(60))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    with pytest.raises(UserError, match="too few examples") as refusal:
        load_data(DataConfig(str(tmp_path / "rows.csv")), TEXTS, seed=0)
    assert "--problem_type regression" in refusal.value.hint


def test_more_examples_per_class_than_there_are_is_said(
    text_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(str(text_file), label_column="animal", examples_per_class=1000)
    data = load_data(config, TEXTS, seed=0)
    assert len(data.train) == 192
    assert "--examples_per_class 1000 has no effect: no class has more than 64" in caplog.text


def test_label_names_that_differ_by_case_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("billing", "BILLING", "sales")
    rows = "".join(f"text {number},{names[number % 3]}\n" for number in range(60))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    load_data(DataConfig(str(tmp_path / "rows.csv")), TEXTS, seed=0)
    assert "differ by case or spaces alone, and may be one: 'BILLING', 'billing'" in caplog.text


def test_labels_are_found_wrong_before_any_image_is_decoded(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(map(str, picture_folder.rglob("*.png")))
    labels = ["a", "b"] * 5 + [""] * (len(files) - 10)
    pd.DataFrame({"image": files, "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    decoded = []
    monkeypatch.setattr(PngImageFile, "load", lambda image: decoded.append(image))
    with pytest.raises(UserError, match="no label"):
        load_data(DataConfig(str(tmp_path / "rows.csv")), IMAGES, seed=0)
    assert not decoded
