"""Images decoded once: their pixels are the processor's, whatever class it has."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.config.cache import CacheConfig
from hf_transfer.data.encode import Encoder, make_encoder
from hf_transfer.data.prepared import (
    FEWEST_ROWS,
    with_prepared_images,
)
from hf_transfer.record import read_record
from hf_transfer.store.entries import list_entries
from hf_transfer.tasks import find_task
from tests.conftest import Outcome

TASK = find_task("image-classification")


def _images(number: int, first: int = 0) -> list[Image.Image]:
    """Images of several sizes and modes."""
    made = []
    for n in range(first, first + number):
        rng = np.random.default_rng(n)
        pixels = rng.integers(0, 256, (12 + n % 5, 20 - n % 7, 3), dtype=np.uint8)
        mode = ("RGB", "L", "CMYK", "P")[n % 4]
        made.append(Image.fromarray(pixels).convert(mode))
    return made


def _rows(split: str, number: int, first: int = 0) -> Dataset:
    ids = [f"{split}/{n}" for n in range(number)]
    images = _images(number, first)
    rows = Dataset.from_dict({"image": images, "label": [n % 2 for n in range(number)], "id": ids})
    return rows.cast_column("image", ImageFeature())


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    return {"train": _rows("train", FEWEST_ROWS - 20), "validation": _rows("validation", 20, 900)}


def _encoder(processor: Any) -> Encoder:
    return make_encoder(TASK, processor, SimpleNamespace(num_channels=3))  # type: ignore[arg-type]


def _small() -> Any:
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def _pixels(encoder: Encoder, rows: Dataset) -> torch.Tensor:
    pixels: torch.Tensor = encoder.collate(list(encoder.rows(rows)))["pixel_values"]
    return pixels


def test_prepared_images_are_those_of_the_processor(
    splits: dict[str, Dataset], tmp_path: Path
) -> None:
    encoder = _encoder(_small())
    prepared = with_prepared_images(encoder, _small(), splits, CacheConfig(cache_dir=str(tmp_path)))
    assert prepared is not encoder
    for name in splits:
        rows = splits[name].select(range(19, 3, -3))
        batch = prepared.collate(list(prepared.rows(rows)))
        assert torch.equal(batch["labels"], torch.tensor(rows["label"][:]))
        torch.testing.assert_close(batch["pixel_values"], _pixels(encoder, rows), atol=1e-6, rtol=0)


@pytest.mark.parametrize("wide", [range(64, 96), range(5, 200)])  # a batch; some of the sample
def test_images_of_several_sizes_are_decoded_in_every_epoch(
    wide: range, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = range(2 * FEWEST_ROWS)
    images = [Image.new("RGB", (24 if number in wide else 16, 16)) for number in numbers]
    columns = {
        "image": images,
        "label": [0] * len(images),
        "id": list(map("train/{}".format, numbers)),
    }
    rows = Dataset.from_dict(columns).cast_column("image", ImageFeature())
    processor = ViTImageProcessorPil(do_resize=False)
    encoder = _encoder(processor)
    cache = CacheConfig(cache_dir=str(tmp_path))
    with caplog.at_level("INFO"):
        assert with_prepared_images(encoder, processor, {"train": rows}, cache) is encoder
    assert "images are decoded in every epoch" in caplog.text
    assert not list_entries(tmp_path)


def test_rows_of_another_split_are_decoded(splits: dict[str, Dataset], tmp_path: Path) -> None:
    encoder = _encoder(_small())
    cache = CacheConfig(cache_dir=str(tmp_path))
    prepared = with_prepared_images(encoder, _small(), splits, cache)
    test = _rows("test", 5, 700)
    assert torch.equal(_pixels(prepared, test), _pixels(encoder, test))


def test_a_second_time_nothing_is_decoded(splits: dict[str, Dataset], tmp_path: Path) -> None:
    cache = CacheConfig(cache_dir=str(tmp_path))
    with_prepared_images(_encoder(_small()), _small(), splits, cache)
    entries = list_entries(tmp_path)
    assert len(entries) == 2
    again = with_prepared_images(_encoder(_small()), _small(), splits, cache)
    assert [entry.key for entry in list_entries(tmp_path)] == [entry.key for entry in entries]
    rows = splits["train"].select(range(4))
    assert torch.equal(_pixels(again, rows), _pixels(again, rows))


@pytest.mark.parametrize(
    "other",
    [
        lambda: ViTImageProcessorPil(size={"height": 8, "width": 16}),
        lambda: ViTImageProcessorPil(size={"height": 16, "width": 16}, resample=0),
        lambda: ViTImageProcessorPil(
            size={"height": 16, "width": 16}, do_resize=True, image_mean=[0.1] * 3
        ),
    ],
)
def test_other_settings_of_the_processor_have_entries_of_their_own(
    other: Callable[[], Any], splits: dict[str, Dataset], tmp_path: Path
) -> None:
    cache = CacheConfig(cache_dir=str(tmp_path))
    with_prepared_images(_encoder(_small()), _small(), splits, cache)
    with_prepared_images(_encoder(other()), other(), splits, cache)
    assert len(list_entries(tmp_path)) == 4


def _efficientnet() -> Any:
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )

    return EfficientNetImageProcessorPil(size={"height": 16, "width": 16})


@pytest.mark.parametrize(
    ("processor", "cache", "reason"),
    [
        (_small, {"cache_limit_gb": 1e-6}, "--cache_limit_gb"),
        (_efficientnet, {}, "no whole numbers"),
    ],
)
def test_where_it_cannot_be_the_processor_runs_and_the_log_says_why(
    processor: Callable[[], Any],
    cache: dict[str, float],
    reason: str,
    splits: dict[str, Dataset],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = _encoder(processor())
    config = CacheConfig(cache_dir=str(tmp_path), **cache)  # type: ignore[arg-type]
    with caplog.at_level("INFO"):
        assert with_prepared_images(encoder, processor(), splits, config) is encoder
    assert reason in caplog.text
    assert not list_entries(tmp_path)


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
