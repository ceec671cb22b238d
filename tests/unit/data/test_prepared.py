"""Images decoded once: their pixels are the processor's, whatever class it has."""

import shutil
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.config.cache import CacheConfig
from hf_transfer.data.encode import Encoder, make_encoder
from hf_transfer.data.prepared import Preparation, Prepared, prepare_images
from hf_transfer.record import read_record
from hf_transfer.store.entries import list_entries
from hf_transfer.tasks import find_task
from tests.conftest import Outcome

TASK = find_task("image-classification")
MODES = ("RGB", "L", "CMYK", "P")
Splits = dict[str, Dataset]


def _rows(split: str, images: list[Image.Image]) -> Dataset:
    numbers = range(len(images))
    columns = {
        "image": images,
        "label": [n % 2 for n in numbers],
        "id": [f"{split}/{n}" for n in numbers],
    }
    return Dataset.from_dict(columns).cast_column("image", ImageFeature())


def _images(number: int, first: int = 0) -> list[Image.Image]:
    """Images of several sizes and modes."""
    made = []
    for n in range(first, first + number):
        rng = np.random.default_rng(n)
        pixels = rng.integers(0, 256, (12 + n % 5, 20 - n % 7, 3), dtype=np.uint8)
        made.append(Image.fromarray(pixels).convert(MODES[n % 4]))
    return made


@pytest.fixture(scope="module")
def splits() -> Splits:
    return {"train": _rows("train", _images(80)), "validation": _rows("validation", _images(9, 90))}


def _small() -> Any:
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def _encoder(processor: Any) -> Encoder:
    return make_encoder(TASK, processor, SimpleNamespace(num_channels=3))  # type: ignore[arg-type]


def _prepare(splits: Splits, processor: Any, cache_dir: Path, **flags: Any) -> Prepared:
    cache = CacheConfig(cache_dir=str(cache_dir), **flags)
    return prepare_images(splits, Preparation(_encoder(processor), processor, cache))


def _pixels(encoder: Encoder, rows: Dataset) -> torch.Tensor:
    pixels: torch.Tensor = encoder.batch(list(encoder.rows(rows)))["pixel_values"]
    return pixels


def test_prepared_images_are_those_of_the_processor(splits: Splits, tmp_path: Path) -> None:
    encoder = _encoder(_small())
    prepared = _prepare(splits, _small(), tmp_path)
    served = prepared.serve(encoder)
    assert not served.decodes
    for name, rows in splits.items():
        some = rows.select(range(8, 0, -3))
        batch = served.batch(list(served.rows(some)))
        assert torch.equal(batch["labels"], torch.tensor(some["label"][:]))
        expected = _pixels(encoder, splits[name].select(range(8, 0, -3)))
        torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-6, rtol=0)


def test_batches_hold_bytes_until_they_are_finished(splits: Splits, tmp_path: Path) -> None:
    prepared = _prepare(splits, _small(), tmp_path)
    served = prepared.serve(_encoder(_small()))
    rows = splits["train"]
    batch = served.collate(list(served.rows(rows.select(range(4)))))
    assert batch["pixel_values"].dtype == torch.uint8
    finished = served.finish(batch)
    assert torch.equal(served.finish(finished)["pixel_values"], finished["pixel_values"])


def test_other_rows_are_decoded(splits: Splits, tmp_path: Path) -> None:
    encoder = _encoder(_small())
    served = _prepare(splits, _small(), tmp_path).serve(encoder)
    others = _rows("train", _images(5, 700))  # with the same ids
    assert torch.equal(_pixels(served, others), _pixels(encoder, others))


def test_an_encoder_of_another_processor_decodes(splits: Splits, tmp_path: Path) -> None:
    other = _encoder(ViTImageProcessorPil(size={"height": 8, "width": 8}))
    assert _prepare(splits, _small(), tmp_path).serve(other) is other


def _blob(image: Image.Image, kind: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_a_second_time_nothing_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    plain = PngImageFile.load

    def load(image: PngImageFile) -> Any:
        decoded.append(image)
        return plain(image)

    files = {
        "train": [{"bytes": _blob(image.convert("RGB")), "path": None} for image in _images(20)]
    }
    splits = {
        name: Dataset.from_dict({"image": rows}).cast_column("image", ImageFeature())
        for name, rows in files.items()
    }
    first = _prepare(splits, _small(), tmp_path)
    entries = list_entries(tmp_path)
    monkeypatch.setattr(PngImageFile, "load", load)
    again = _prepare(splits, _small(), tmp_path)
    assert len(set(map(id, decoded))) <= 4  # those on which the two ways are compared
    assert [entry.key for entry in list_entries(tmp_path)] == [entry.key for entry in entries]
    assert first.splits["train"].digests == again.splits["train"].digests


@pytest.mark.parametrize(
    "other",
    [
        lambda: ViTImageProcessorPil(size={"height": 8, "width": 16}),
        lambda: ViTImageProcessorPil(size={"height": 16, "width": 16}, resample=0),
        lambda: ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.1] * 3),
    ],
)
def test_other_settings_of_the_processor_have_entries_of_their_own(
    other: Callable[[], Any], splits: Splits, tmp_path: Path
) -> None:
    _prepare(splits, _small(), tmp_path)
    _prepare(splits, other(), tmp_path)
    assert len(list_entries(tmp_path)) == 4


def _efficientnet() -> Any:
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )

    return EfficientNetImageProcessorPil(size={"height": 16, "width": 16})


def _unresized() -> Any:
    return ViTImageProcessorPil(do_resize=False)


@pytest.mark.parametrize(
    ("processor", "cache", "reason"),
    [
        (_small, {"cache_limit_gb": 1e-6}, "--cache_limit_gb"),
        (_small, {"cache_limit_gb": 1e-6, "cache_inputs": "true"}, "WARNING"),
        (_small, {"cache_inputs": "false"}, "--cache_inputs false"),
        (_efficientnet, {}, "no whole numbers"),
        (_unresized, {}, ""),
    ],
)
def test_where_it_cannot_be_the_processor_runs_and_the_log_says_why(
    processor: Callable[[], Any],
    cache: dict[str, Any],
    reason: str,
    splits: Splits,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = _encoder(processor())
    with caplog.at_level("INFO"):
        prepared = _prepare(splits, processor(), tmp_path, **cache)
    assert prepared.serve(encoder) is encoder
    assert "images are decoded in every epoch" in caplog.text
    assert reason in caplog.text
    assert not list_entries(tmp_path)
    assert len(prepared.splits["train"].facts) == len(splits["train"])


def test_images_of_another_size_late_in_the_data_are_decoded_in_every_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [Image.new("RGB", (24 if 64 <= n < 96 else 16, 16)) for n in range(200)]
    splits = {"train": _rows("train", images)}
    with caplog.at_level("INFO"):
        prepared = _prepare(splits, _unresized(), tmp_path)
    assert "images are decoded in every epoch" in caplog.text
    assert prepared.parts is None
    assert not list_entries(tmp_path)


@pytest.mark.parametrize("cached", [True, False])
def test_damaged_images_have_their_reason_and_no_pixels(cached: bool, tmp_path: Path) -> None:
    good = [{"bytes": _blob(image.convert("RGB")), "path": None} for image in _images(3)]
    bad = [{"bytes": b"", "path": None}, {"bytes": _blob(_images(1)[0])[:60], "path": None}, None]
    rows = Dataset.from_dict({"image": [bad[0], *good, *bad[1:]]})
    splits = {"train": rows.cast_column("image", ImageFeature())}
    for _ in range(2):
        found = (_prepare(splits, _small(), tmp_path) if cached else prepare_images(splits)).splits
        reasons = [reason for reason, _ in found["train"].facts]
        assert reasons[0] == "the image's file is empty"
        assert reasons[1:4] == [None] * 3
        assert str(reasons[4]).startswith("the image cannot be read")
        assert reasons[5] == "no image"
        assert not found["train"].thumbnails[[0, 4, 5]].any()


def test_equal_files_have_equal_digests_and_similar_images_similar_hashes() -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (6, 8), dtype=np.uint8))
    image = small.resize((320, 240), Image.Resampling.BICUBIC)
    contents = [_blob(image), _blob(image), _blob(image, "JPEG"), _blob(image.rotate(90))]
    rows = Dataset.from_dict({"image": [{"bytes": each, "path": None} for each in contents]})
    found = prepare_images({"train": rows.cast_column("image", ImageFeature())}).splits["train"]
    assert found.digests[0] == found.digests[1] != found.digests[2]
    distances = [(int(found.hashes[0]) ^ int(each)).bit_count() for each in found.hashes]
    assert distances[1] == 0
    assert distances[2] <= 6 < distances[3]


def test_a_run_with_prepared_images_ends_as_one_without(
    recipe: Callable[..., Outcome], tiny_vit: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        path = tmp_path / "images" / ("dark", "bright")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 130, (20, 20, 3), dtype=np.uint8) + np.uint8(120 * (number % 2))
        Image.fromarray(pixels).save(path)
    records = {}
    for choice in ("false", "true"):
        ended = recipe(
            "image_classification",
            *("--model_name_or_path", tiny_vit, "--dataset_name", tmp_path / "images"),
            *("--output_dir", tmp_path / choice, "--strategy", "head_then_full", "--use_cpu"),
            *("--cache_inputs", choice, "--cache_dir", tmp_path / f"cache-{choice}"),
            *("--max_steps", "12", "--disable_tqdm", "true"),
        )
        assert ended.code == 0, ended.err
        records[choice] = read_record(tmp_path / choice / "record.json")
    plain, prepared = records["false"], records["true"]
    assert len(list_entries(tmp_path / "cache-true")) > len(list_entries(tmp_path / "cache-false"))
    assert plain.metrics["accuracy"] == prepared.metrics["accuracy"]
    loss = plain.metrics["log_loss"].value
    assert prepared.metrics["log_loss"].value == pytest.approx(loss, abs=1e-5)


def test_a_batch_of_another_size_that_the_sample_does_not_meet_is_no_crash(tmp_path: Path) -> None:
    images = [Image.new("RGB", (24 if 32 <= n < 64 else 16, 16)) for n in range(200)]
    assert _prepare({"train": _rows("train", images)}, _unresized(), tmp_path).parts is None
    assert not list_entries(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_not_kept_under_its_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(6)]
    for path in paths:
        Image.new("RGB", (16, 16), "red").save(path)
    rows = Dataset.from_dict({"image": list(map(str, paths))})
    splits = {"train": rows.cast_column("image", ImageFeature())}
    plain = shutil.disk_usage

    def changes_a_file(path: Path) -> Any:
        Image.new("RGB", (16, 16), "blue").save(paths[0])
        return plain(path)

    monkeypatch.setattr(shutil, "disk_usage", changes_a_file)  # between digests and pixels
    with caplog.at_level("INFO"):
        assert _prepare(splits, _small(), tmp_path / "cache").parts is None
    assert "a file changed while it was read" in caplog.text
    assert not list_entries(tmp_path / "cache")


def _with_exif(content: bytes, exif: bytes) -> bytes:
    """A JPEG with an APP1 segment."""
    segment = b"Exif\0\0" + exif
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_image_with_a_broken_header_is_a_row_with_a_reason_or_an_image(tmp_path: Path) -> None:
    good = [{"bytes": _blob(image.convert("RGB"), "JPEG"), "path": None} for image in _images(4)]
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x01\0"
    broken = {"bytes": _with_exif(good[0]["bytes"], exif), "path": None}
    rows = Dataset.from_dict({"image": [broken, *good]}).cast_column("image", ImageFeature())
    facts = _prepare({"train": rows}, _small(), tmp_path).splits["train"].facts
    assert [reason for reason, _ in facts[1:]] == [None] * 4


def test_thumbnails_of_rows_that_were_changed_since_are_those_of_the_new_images(
    splits: Splits, tmp_path: Path
) -> None:
    prepared = _prepare(splits, _small(), tmp_path)
    changed = _rows("train", [Image.new("RGB", (16, 16), "white")] * 3)
    assert prepared.thumbnails(changed).min() == 1.0
    same = prepared.thumbnails(splits["train"])
    assert same.shape[0] == len(splits["train"])


@pytest.mark.parametrize("cached", [True, False])
def test_a_split_without_rows_has_no_images(cached: bool, splits: Splits, tmp_path: Path) -> None:
    some = {**splits, "validation": splits["train"].select([])}
    prepared = _prepare(some, _small(), tmp_path) if cached else prepare_images(some)
    assert prepared.splits["validation"].facts == ()
    assert len(prepared.splits["validation"].thumbnails) == 0
