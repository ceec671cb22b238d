"""Images made ready once: decoded, resized and cropped as the processor does, in the store.

The pixels are kept just before they are rescaled and normalised: a byte per channel, a quarter of
the size that the network reads. The rest is done for a batch at once.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_transfer.config.cache import CacheConfig
from hf_transfer.data.checks import content_digest
from hf_transfer.data.encode import Batch, Encoder, Rows
from hf_transfer.errors import one_line
from hf_transfer.sealed import NotWrittenError
from hf_transfer.store.activations import (
    Activations,
    digest,
    open_activations,
    write_activations,
)
from hf_transfer.store.entries import resolve_cache_dir, room_for

log = logging.getLogger(__name__)

VERSION = 1  # of what is stored: raise it where the same images give other pixels
PIXELS = "pixels"
SAMPLE_ROWS = 8  # on which both ways are compared
MAX_DIFFERENCE = 1e-6
BATCH_SIZE = 32
FEWEST_ROWS = 200  # fewer are decoded in less time than the store takes
ROWS_PER_WORKER = 250
MAX_WORKERS = 8


@dataclass(frozen=True)
class Preparation:
    """The two parts of an image processor: `pixels` up to bytes, `finish` from there on."""

    pixels: Callable[[Rows], np.ndarray]  # rows -> (rows, channels, height, width), uint8
    finish: Callable[[torch.Tensor], torch.Tensor]  # these -> what the network reads


class NotPreparedError(Exception):
    """Why images cannot be kept ready; the processor then runs for each batch."""


def with_prepared_images(
    encoder: Encoder, processor: Any, splits: Mapping[str, Dataset], cache: CacheConfig
) -> Encoder:
    """The encoder, reading the images of these splits from the store; the same if it cannot.

    The log says why not. Rows are known by their ids; those of other splits are decoded.
    """
    if encoder.images is None or sum(map(len, splits.values())) < FEWEST_ROWS:
        return encoder
    try:
        preparation = prove_preparation(encoder, processor, next(iter(splits.values())))
        stored = {
            name: _load_or_prepare(preparation, encoder, split, cache)
            for name, split in splits.items()
        }
    except NotPreparedError as reason:
        log.info("images are decoded in every epoch: %s", reason)
        return encoder
    places = {
        row: (stored[name], number)
        for name, split in splits.items()
        for number, row in enumerate(split["id"][:])
    }

    def rows_of(split: Dataset) -> Dataset:
        known = all(map(places.__contains__, split["id"][:]))
        return split.cast_column("image", Image(decode=False)) if known else encoder.rows(split)

    def collate(rows: Rows) -> Batch:
        if not isinstance(rows[0]["image"], dict):
            return encoder.collate(rows)
        found = (places[row["id"]] for row in rows)
        pixels = np.stack([entry.values[PIXELS][number] for entry, number in found])
        return {"pixel_values": preparation.finish(torch.from_numpy(pixels)), **encoder.light(rows)}

    return replace(encoder, rows=rows_of, collate=collate)


def prove_preparation(encoder: Encoder, processor: Any, split: Dataset) -> Preparation:
    """The two parts of a processor. Raises NotPreparedError unless they give what it gives."""
    assert encoder.images
    preparation = Preparation(_read_pixels(encoder.images, processor), _finish(processor))
    chosen = np.linspace(0, len(split) - 1, min(SAMPLE_ROWS, len(split))).astype(int)
    sample = list(split.select(chosen))
    try:
        whole = encoder.collate(sample)
    except (ValueError, TypeError, RuntimeError) as error:  # of several sizes, one at a time serves
        raise NotPreparedError(one_line(error)) from error
    if set(whole) != {"pixel_values", "labels"}:
        raise NotPreparedError(f"the network reads {', '.join(sorted(set(whole) - {'labels'}))}")
    pixels = torch.from_numpy(preparation.pixels(sample))
    finished = preparation.finish(pixels)
    if finished.shape != whole["pixel_values"].shape:
        raise NotPreparedError("the processor makes images of several sizes")
    difference = float((finished - whole["pixel_values"]).abs().max())
    if not difference <= MAX_DIFFERENCE:
        raise NotPreparedError(f"{type(processor).__name__} gives other pixels in two parts")
    return preparation


def _read_pixels(
    images: Callable[[Rows], list[Any]], processor: Any
) -> Callable[[Rows], np.ndarray]:
    def pixels(rows: Rows) -> np.ndarray:
        try:
            made = processor(
                images(rows), do_rescale=False, do_normalize=False, return_tensors="pt"
            )["pixel_values"]
        except (ValueError, TypeError, RuntimeError) as error:
            raise NotPreparedError(one_line(error)) from error
        bytes_ = made.to(torch.uint8)
        if not torch.equal(bytes_.to(made.dtype), made):
            raise NotPreparedError(f"{type(processor).__name__} makes no whole numbers")
        return bytes_.numpy()

    return pixels


def _finish(processor: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rescaling and normalisation by a processor's settings, for a batch at once."""
    scale = processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
    mean, std = torch.zeros(1), torch.ones(1)
    if getattr(processor, "do_normalize", False):
        mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    mean, std = (values.float().reshape(-1, 1, 1) for values in (mean, std))

    def finish(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() * scale - mean) / std

    return finish


def _load_or_prepare(
    preparation: Preparation, encoder: Encoder, split: Dataset, cache: CacheConfig
) -> Activations:
    """The pixels of a split: from the store, or prepared in one pass of several processes."""
    folder = resolve_cache_dir(cache.cache_dir)
    rows = content_digest(split, ["image"])
    key = digest({"prepared": VERSION, "rows": rows, "encoder": dict(encoder.facts)})
    stored = open_activations(folder, key)
    if stored is not None:
        return stored
    sample = preparation.pixels(list(split.select([0])))
    reason = room_for(folder, sample.nbytes * len(split), cache.cache_limit_gb)
    if reason:
        raise NotPreparedError(reason)
    batches = _batches(preparation, split, sample.shape[1:])
    about = {"images": len(split), "processor": str(encoder.facts["class"])}
    try:
        return write_activations(folder, key, len(split), batches, about)
    except NotWrittenError as error:
        raise NotPreparedError(str(error)) from error


def _batches(
    preparation: Preparation, split: Dataset, shape: tuple[int, ...]
) -> Iterator[list[dict[str, np.ndarray]]]:
    """The pixels of a split. Raises NotPreparedError if an image is not of this shape."""
    # Elsewhere than on Linux, workers would have to be sent what they call.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    workers = min(MAX_WORKERS, cores, len(split) // ROWS_PER_WORKER)
    loader = DataLoader(
        split,
        batch_size=BATCH_SIZE,
        collate_fn=preparation.pixels,
        num_workers=workers if workers > 1 else 0,
    )
    quiet = not log.isEnabledFor(logging.INFO)
    for pixels in tqdm(loader, desc="preparing images", disable=quiet):
        if pixels.shape[1:] != shape:
            raise NotPreparedError("the processor makes images of several sizes")
        yield [{PIXELS: image} for image in pixels]
