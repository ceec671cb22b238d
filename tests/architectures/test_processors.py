"""Every image processor of transformers, in its default settings: prepared once, the same pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from hf_transfer.data.encode import make_encoder
from hf_transfer.data.pixels import read_image
from hf_transfer.data.processor_parts import NotPreparedError, split_processor
from hf_transfer.tasks import find_task


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Eight images of several sizes and modes."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(8):
        pixels = rng.integers(0, 256, (40 + 7 * number, 60 - 3 * number, 3), dtype=np.uint8)
        images.append(Image.fromarray(pixels).convert(("RGB", "L", "CMYK", "P")[number % 4]))
    ids = [f"train/{number}" for number in range(8)]
    columns = {"image": images, "label": [0] * 8, "id": ids}
    return Dataset.from_dict(columns).cast_column("image", ImageFeature())


@pytest.mark.slow
def test_over_20_classes_of_processors_give_the_same_pixels_in_two_parts(
    rows: Dataset,
) -> None:
    task = find_task("image-classification")
    config = SimpleNamespace(num_channels=3)
    equal: list[str] = []
    reasons: dict[str, str] = {}
    for names in IMAGE_PROCESSOR_MAPPING_NAMES.values():
        name = names.get("pil") if isinstance(names, dict) else None
        if name is None or name in (*equal, *reasons):
            continue
        try:
            processor = getattr(transformers, name)()
            encoder = make_encoder(task, processor, config)
            whole = encoder.collate(list(rows))["pixel_values"]
        except Exception as error:  # noqa: BLE001 - it takes more than images, or settings
            reasons[name] = f"{type(error).__name__}"
            continue
        try:
            images = [read_image(row["image"]) for row in rows]
            parts = split_processor(processor, images[:4])
            finished = parts.finish(torch.from_numpy(parts.read(images)))
        except NotPreparedError as reason:
            reasons[name] = str(reason)
            continue
        assert float((finished - whole).abs().max()) <= 1e-6, name
        equal.append(name)
    assert len(equal) >= 20, reasons
