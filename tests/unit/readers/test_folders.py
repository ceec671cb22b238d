import shutil
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset
from PIL import Image

from hf_transfer.config.data import DataConfig
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.readers.folders import assign_splits, read_folder, with_named_files


def _filled(root: Path, *paths: str) -> Path:
    """A folder with an image, or a text, at each path."""
    for number, name in enumerate(paths):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text(f"text {number}")
        elif path.suffix.lower() in (".png", ".jpg"):
            Image.new("L", (4, 4), number % 256).save(path)
        else:
            path.write_text('{"shapes": [], "title": "1.png"}')
    return root


def _counted(root: Path, modality: str = "image") -> dict[str, dict[str, int]]:
    """Split -> class -> number of rows."""
    counts: dict[str, dict[str, int]] = {}
    for split, rows in read_folder(root, modality).items():
        feature = rows.features["label"]
        names = rows["label"][:]
        if hasattr(feature, "names"):
            names = [feature.names[number] for number in names]
        counts[split] = {name: names.count(name) for name in sorted(set(names))}
    return counts


AB = {"a": 1, "b": 1}
LAYOUTS: dict[str, tuple[list[str], dict[str, dict[str, int]]]] = {
    "class folders": (["a/1.png", "b/1.png"], {"train": AB}),
    "a class called train": (
        ["bus/1.png", "car/1.png", "train/1.png"],
        {"train": {"bus": 1, "car": 1, "train": 1}},
    ),
    "a class called test with folders below, as all have": (
        ["bus/in/1.png", "bus/out/1.png", "train/in/1.png", "train/out/1.png"],
        {"train": {"bus": 2, "train": 2}},
    ),
    "files called train and test": (
        ["a/train-1.png", "a/test_2.png", "b/photo.png"],
        {"train": {"a": 2, "b": 1}},
    ),
    "splits": (
        ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"],
        {"train": AB, "test": AB},
    ),
    "splits of other names": (
        ["Training/a/1.png", "Training/b/1.png", "val/a/1.png", "val/b/1.png"],
        {"train": AB, "validation": AB},
    ),
    "a test folder without class folders": (
        ["train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png"],
        {"train": AB},
    ),
    "a folder beside the splits": (
        ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "extra/c/1.png"],
        {"train": AB, "test": AB},
    ),
    "folders within class folders": (
        ["a/in/1.png", "a/out/1.png", "b/in/1.png", "b/out/deep/1.png"],
        {"train": {"a": 2, "b": 2}},
    ),
    "folders within the class folders of splits": (
        ["train/a/in/1.png", "train/b/in/1.png", "test/a/out/1.png", "test/b/out/1.png"],
        {"train": AB, "test": AB},
    ),
    "one folder around all": (["photos/a/1.png", "photos/b/1.png"], {"train": AB}),
    "one folder around splits": (
        ["photos/train/a/1.png", "photos/train/b/1.png", "photos/test/a/1.png"],
        {"train": AB, "test": {"a": 1}},
    ),
    "images beside class folders": (["a/1.png", "b/1.png", "cover.png"], {"train": AB}),
    "a description beside each image": (
        ["a/1.png", "a/1.json", "b/1.png", "b/1.png.json"],
        {"train": AB},
    ),
    "hidden files and folders": (
        ["a/1.png", "b/1.png", "a/.2.png", ".cache/3.png", "__MACOSX/a/1.png"],
        {"train": AB},
    ),
    "suffixes in upper case": (["a/1.PNG", "b/1.JPG"], {"train": AB}),
    "brackets": (["a[1]/1.png", "b*/1.png"], {"train": {"a[1]": 1, "b*": 1}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_is_in_its_split_and_class(layout: str, tmp_path: Path) -> None:
    paths, expected = LAYOUTS[layout]
    assert _counted(_filled(tmp_path / "data", *paths)) == expected


def test_texts_are_read_by_class_folder(tmp_path: Path) -> None:
    root = _filled(tmp_path, "train/a/1.txt", "train/b/2.txt", "test/a/3.txt")
    assert _counted(root, "text") == {"train": AB, "test": {"a": 1}}
    assert read_folder(root, "text")["test"][0]["text"] == "text 2"


def test_linked_class_folders_are_followed_and_a_link_to_above_ends(tmp_path: Path) -> None:
    _filled(tmp_path / "store", "a/1.png")
    root = _filled(tmp_path / "data", "b/1.png")
    (root / "a").symlink_to(tmp_path / "store" / "a")
    (root / "b" / "up").symlink_to(root)
    assert _counted(root) == {"train": AB}


def test_what_is_not_read_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _filled(
        tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png", "n.md", ".hidden"
    )
    with caplog.at_level("INFO"):
        read_folder(root, "image")
    assert caplog.messages == [
        "not read: 2 images in test/, outside class folders",
        "not read: 1 files (.md)",
        "not read: 1 hidden files",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("file,label\n1.png,a\n2.png,b\n", {"train": AB}),
        ("id,label\n1,a\n2,b\n", {"train": AB}),
        ("image,label\nimages/3.png,a\nimages/4.png,b\n", {"train": AB}),
    ],
)
def test_a_table_names_images_by_path_name_or_stem(
    content: str, expected: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    root = _filled(tmp_path, "1.png", "2.png", "images/3.png", "images/4.png")
    (root / "labels.csv").write_text(content)
    assert _counted(root) == expected
    assert isinstance(read_folder(root, "image")["train"][0]["image"], Image.Image)


def test_a_table_of_each_split_names_images_beside_it(tmp_path: Path) -> None:
    root = _filled(tmp_path, "train/1.png", "train/2.png", "test/1.png")
    (root / "train" / "metadata.csv").write_text("file_name,label\n1.png,a\n2.png,b\n")
    (root / "test" / "metadata.jsonl").write_text('{"file_name": "1.png", "label": "a"}\n')
    assert _counted(root) == {"train": AB, "test": {"a": 1}}


def test_one_table_names_images_of_all_splits(tmp_path: Path) -> None:
    root = _filled(tmp_path, "train/1.png", "train/2.png", "test/3.png")
    (root / "metadata.csv").write_text(
        "file_name,label\ntrain/1.png,a\ntrain/2.png,b\ntest/3.png,a\n"
    )
    assert _counted(root) == {"train": AB, "test": {"a": 1}}


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train.csv", "test.csv"], {"train": 1, "test": 1}),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], {"train": 2}),
        (["a.csv", "b.csv"], {"train": 2}),
        (["train.csv", "holdout.csv"], {"train": 1, "holdout": 1}),
        (["train/1.jsonl", "dev/1.jsonl"], {"train": 1, "validation": 1}),
        (["my_train_v2.csv", "my-eval.csv"], {"train": 1, "test": 1}),
        (["trains.csv"], {"train": 1}),
    ],
)
def test_tables_become_splits_by_their_names(paths: list[str], splits: dict[str, int]) -> None:
    assigned = assign_splits([Path(path) for path in paths])
    assert {split: len(files) for split, files in assigned.items()} == splits


def test_a_column_that_one_table_lacks_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    (tmp_path / "test.csv").write_text("text,label,annotator\na,x,ann\n")
    splits = read_folder(tmp_path, "text")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["1.png", "2.png"], "the 2 images of 'data' stand in no class folders"),
        (["notes.md"], "holds no image that can be read: 1 files (.md)"),
        ([], "holds no image that can be read"),
    ],
)
def test_a_folder_without_classes_is_refused_by_what_it_holds(
    paths: list[str], message: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(UserError) as refusal:
        read_folder(_filled(root, *paths), "image")
    assert message in refusal.value.message


def test_a_zip_of_a_folder_is_read_as_the_folder(picture_folder: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(
        str(tmp_path / "photos"), "zip", picture_folder.parent, picture_folder.name
    )
    folder, zipped = (
        load_data(DataConfig(str(path)), "image-classification", 0)
        for path in (picture_folder, archive)
    )
    assert folder.fingerprint == zipped.fingerprint


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"'photos.zip' is no zip file"):
        load_data(DataConfig(str(tmp_path / "photos.zip")), "image-classification", 0)


@pytest.mark.parametrize("bare", [True, False])
def test_images_as_bytes_in_a_table_are_images(
    bare: bool, picture_folder: Path, tmp_path: Path
) -> None:
    files = sorted(picture_folder.rglob("*.png"))
    cells = [
        path.read_bytes() if bare else {"bytes": path.read_bytes(), "path": path.name}
        for path in files
    ]
    frame = pd.DataFrame({"photo": cells, "label": [path.parent.name for path in files]})
    frame.to_parquet(tmp_path / "rows.parquet")
    data = load_data(DataConfig(str(tmp_path / "rows.parquet")), "image-classification", 0)
    assert data.labels == ("bright", "dark")
    assert data.train[0]["image"].size == (16, 16)


def test_rows_used_and_dropped_are_all_rows_of_the_files(tmp_path: Path) -> None:
    lines = [f"text {number},{'xy'[number % 2]}" for number in range(300)]
    lines[7], lines[70] = ",x", "text 70,"
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(lines))
    data = load_data(DataConfig(str(tmp_path / "rows.csv")), "text-classification", 0)
    assert sum(map(len, data.splits.values())) + len(data.dropped) == 300


def test_a_single_table_names_images_from_its_own_folder(tmp_path: Path) -> None:
    root = _filled(tmp_path, "1.png", "2.png")
    table = Dataset.from_dict({"photo": ["1.png", None, "2.png"], "label": ["a", "b", "a"]})
    rows = with_named_files(table, root, "image")
    assert isinstance(rows[2]["photo"], Image.Image)
    assert rows[1]["photo"] is None
    assert with_named_files(table, tmp_path / "elsewhere", "image") is table
    assert with_named_files(table, root, "text") is table
