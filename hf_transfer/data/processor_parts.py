"""The two parts of an image processor: up to bytes, once; from there on, a batch at a time.

Which part of a processor is deterministic is not read from its class: both ways are tried on some
images, and must give the same pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_transfer.errors import one_line

MAX_DIFFERENCE = 1e-6

Images = list[Image.Image]


@dataclass(frozen=True)
class ProcessorParts:
    """`read`: images -> (images, *shape), uint8; `finish`: these, as the network reads them."""

    read: Callable[[Images], np.ndarray]
    finish: Callable[[torch.Tensor], torch.Tensor]
    shape: tuple[int, ...] = ()  # channels, height, width


class NotPreparedError(Exception):
    """Why images cannot be kept ready; the processor then runs for each batch."""


def split_processor(processor: Any, sample: Images) -> ProcessorParts:
    """The two parts of a processor. Raises NotPreparedError unless they give what it gives."""
    parts = ProcessorParts(_read(processor), _finish(processor))
    if not sample:
        raise NotPreparedError("no image can be read")
    try:
        whole = processor(sample, return_tensors="pt")
    except (ValueError, TypeError, RuntimeError) as error:  # of several sizes, one at a time serves
        raise NotPreparedError(one_line(error)) from error
    if not isinstance(whole, Mapping) or set(whole) != {"pixel_values"}:
        raise NotPreparedError(f"the network reads {', '.join(map(str, whole))}")
    pixels = torch.from_numpy(parts.read(sample))
    finished = parts.finish(pixels)
    if finished.shape != whole["pixel_values"].shape:
        raise NotPreparedError("the processor makes images of several sizes")
    difference = float((finished - whole["pixel_values"]).abs().max())
    if not difference <= MAX_DIFFERENCE:
        raise NotPreparedError(f"{type(processor).__name__} gives other pixels in two parts")
    return replace(parts, shape=tuple(pixels.shape[1:]))


def _read(processor: Any) -> Callable[[Images], np.ndarray]:
    def read(images: Images) -> np.ndarray:
        try:
            made = processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")
        except (ValueError, TypeError, RuntimeError) as error:
            raise NotPreparedError(one_line(error)) from error
        pixels = made["pixel_values"]
        bytes_ = pixels.to(torch.uint8)
        if not torch.equal(bytes_.to(pixels.dtype), pixels):
            raise NotPreparedError(f"{type(processor).__name__} makes no whole numbers")
        return bytes_.numpy()

    return read


def _finish(processor: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rescaling and normalisation by a processor's settings, for a batch at once."""
    scale = processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
    mean, std = torch.zeros(1), torch.ones(1)
    if getattr(processor, "do_normalize", False):
        mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    mean, std = (values.float().reshape(-1, 1, 1) for values in (mean, std))

    def finish(pixels: torch.Tensor) -> torch.Tensor:
        device = pixels.device
        # In place: on a CPU, new memory for each step takes longer than the arithmetic.
        return pixels.float().mul_(scale).sub_(mean.to(device)).div_(std.to(device))

    return finish
