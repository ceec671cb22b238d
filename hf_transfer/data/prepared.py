"""Images read once: one pass over the files of a dataset gives all that is ever needed of them.

Whether a file is damaged, its digest, a thumbnail, a perceptual hash, and the pixels that the
checkpoint's processor makes of it, just before they are rescaled and normalised: a byte per
channel, a quarter of what the network reads. All of it is kept in the store.
"""

import io
import itertools
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_transfer.config.cache import CacheConfig
from hf_transfer.data.checks import DIGEST, FileFacts, stored_rows
from hf_transfer.data.encode import Batch, Encoder, Rows
from hf_transfer.data.pixels import DAMAGE, Mode, OpenedImage, image_bytes, open_image
from hf_transfer.data.processor_parts import NotPreparedError, ProcessorParts, split_processor
from hf_transfer.sealed import NotWrittenError
from hf_transfer.store.activations import (
    Activations,
    digest,
    open_activations,
    write_activations,
)
from hf_transfer.store.entries import resolve_cache_dir, room_for

log = logging.getLogger(__name__)

VERSION = 2  # of what is stored: raise it where the same images give another content
FACTS = "facts"  # reason and kind, as JSON
THUMBNAIL = "thumbnail"
HASH = "hash"
PIXELS = "pixels"
SAMPLE_ROWS = 4  # on which both ways of the processor are compared
MAX_TRIED = 50  # rows that are tried where one of these cannot be read
BATCH_SIZE = 32
MAX_SIDE = 32  # pixels, of a thumbnail
HASH_SIZE = (9, 8)
# What keeps one worker busy for long enough to be worth its start, about a second.
ROWS_PER_WORKER = 250
BYTES_PER_WORKER = 2e7
MAX_WORKERS = 8
# A photo is first reduced by a whole factor: its thumbnail takes a fraction of the time.
REDUCING_GAP = 3.0
MAX_PIXELS = 8e6  # decoded, in memory at once

Row = dict[str, np.ndarray]  # column -> that of one image


@dataclass(frozen=True)
class Preparation:
    """How a checkpoint reads images, and where the result is kept."""

    encoder: Encoder
    processor: Any
    cache: CacheConfig


@dataclass(frozen=True)
class PreparedSplit:
    """What the pass found of the images of a split, a row each.

    Attributes:
        digests: Of the files, in hex.
        facts: Reasons why images cannot be used, and their kinds.
        thumbnails: (rows, side, side), grey levels as uint8; zeros where there is no image.
        hashes: (rows,), uint64: of each pixel of the thumbnail in 9 x 8, whether the next is
            brighter (dHash).
        pixels: (rows, channels, height, width), uint8, or None where they are not kept.
    """

    digests: tuple[str, ...]
    facts: FileFacts
    thumbnails: np.ndarray
    hashes: np.ndarray
    pixels: np.ndarray | None


@dataclass(frozen=True)
class Prepared:
    """What the pass found of all splits.

    `encoder` is that of the preparation; `parts` are None where there are no pixels.
    """

    splits: Mapping[str, PreparedSplit]
    encoder: Encoder | None = None
    parts: ProcessorParts | None = None

    @cached_property
    def places(self) -> dict[str, tuple[PreparedSplit, int]]:
        """Digest of an image that can be used -> a split that has it, and its row there."""
        return {
            digest: (split, row)
            for split in self.splits.values()
            for row, digest in enumerate(split.digests)
            if split.facts[row][0] is None
        }

    def was_tried_for(self, encoder: Encoder) -> bool:
        """Whether pixels for this encoder are kept, or cannot be."""
        return self.encoder is not None and self.encoder.facts == encoder.facts

    def with_digests(self, splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """The splits with the digests of their images as a column."""
        return {
            name: rows.add_column(DIGEST, list(self.splits[name].digests))
            for name, rows in splits.items()
        }

    def without_digests(self, splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """These splits as before: a column of digests would be wrong once images are changed."""
        return {name: rows.remove_columns(DIGEST) for name, rows in splits.items()}

    def thumbnails(self, rows: Dataset) -> np.ndarray:
        """(rows, side x side), grey levels in 0..1, of rows of these splits."""
        digests, _ = _digests(rows)
        if not self.places.keys() >= set(digests):  # rows that were changed since
            return prepare_images({"train": rows}).thumbnails(rows)
        found = (self.places[each] for each in digests)
        return np.stack([split.thumbnails[row].ravel() for split, row in found]) / 255.0

    def serve(self, encoder: Encoder) -> Encoder:
        """The encoder, reading pixels from the store; the same if they are another processor's.

        Rows are recognised by the content of their files, whatever their ids; others are decoded.
        """
        parts = self.parts
        if parts is None or not self.was_tried_for(encoder):
            return encoder

        def rows(split: Dataset) -> Dataset:
            digests, _ = _digests(split)
            if not self.places.keys() >= set(digests):
                return encoder.rows(split)
            return split.remove_columns("image").add_column(DIGEST, list(digests))

        def collate(rows: Rows) -> Batch:
            if "image" in rows[0]:
                return encoder.collate(rows)
            found = (self.places[row[DIGEST]] for row in rows)
            pixels = np.stack([split.pixels[row] for split, row in found])  # type: ignore[index]
            return {"pixel_values": torch.from_numpy(pixels), **encoder.light(rows)}

        def finish(batch: Batch) -> Batch:
            pixels = batch.get("pixel_values")
            if pixels is None or pixels.dtype != torch.uint8:
                return batch
            return {**batch, "pixel_values": parts.finish(pixels)}

        return replace(encoder, rows=rows, collate=collate, finish=finish, decodes=False)


@dataclass(frozen=True)
class ImagePass:
    """What is made of each image: a thumbnail of this side and, with `parts`, its pixels.

    `facts` are those of the encoder, which decide the pixels. Without a `cache` nothing is stored.
    """

    side: int
    mode: Mode = "RGB"
    parts: ProcessorParts | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    cache: CacheConfig | None = None

    def run(self, split: Dataset, digests: Sequence[str], nbytes: int) -> Iterator[list[Row]]:
        """The columns of a split, whose files have `nbytes`, in batches, by several workers.

        Raises NotPreparedError if the processor does not take an image, or a file that is to be
        stored has changed.
        """
        work = len(split) / ROWS_PER_WORKER + nbytes / BYTES_PER_WORKER
        workers = min(decoding_workers(), int(work))
        loader = DataLoader(
            split.add_column(DIGEST, list(digests))
            .select_columns(["image", DIGEST])
            .cast_column("image", Image(decode=False)),
            batch_size=BATCH_SIZE,
            collate_fn=self._read,
            num_workers=workers if workers > 1 else 0,
        )
        quiet = work < 1 or not log.isEnabledFor(logging.INFO)
        for batch in tqdm(loader, desc="reading images", disable=quiet):
            if isinstance(batch, NotPreparedError):
                raise batch
            yield batch

    def _read(self, rows: Rows) -> list[Row] | NotPreparedError:
        """The columns of some rows; an error is no exception, which would bring its traceback."""
        made: list[Row] = []
        group: list[OpenedImage] = []
        try:
            for row in rows:
                group.append(self._open(row))
                # No more at once: a batch of photos takes gigabytes.
                if sum(each.size for each in group) >= MAX_PIXELS:
                    made += self._columns(group)
                    group = []
            return made + self._columns(group)
        except NotPreparedError as error:
            return error

    def _open(self, row: Mapping[str, Any]) -> OpenedImage:
        stored = row["image"]
        content = _content(stored)
        if self.cache is not None and _digest(content) != row[DIGEST]:
            raise NotPreparedError("a file changed while it was read")
        return open_image({**stored, "bytes": content} if content else stored, self.mode)

    def _columns(self, group: Sequence[OpenedImage]) -> list[Row]:
        made = [_describe(each, self.side) for each in group]
        images = [each.image for each in group if each.image is not None]
        if self.parts is None:
            return made
        pixels = self.parts.read(images) if images else np.zeros((0, *self.parts.shape), np.uint8)
        if pixels.shape[1:] != self.parts.shape:
            raise NotPreparedError("the processor makes images of several sizes")
        rest = iter(pixels)
        for row, each in zip(made, group, strict=True):
            row[PIXELS] = np.zeros(self.parts.shape, np.uint8)
            if each.image is not None:
                row[PIXELS] = next(rest)
        return made


@cache
def decoding_workers() -> int:
    """Number of processes that decode images: one per core, at most 8; the same in all of a run.

    0 with a single core or a busy machine, and elsewhere than on Linux, where workers would have to
    be sent what they call.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    cores = len(os.sched_getaffinity(0))
    if os.getloadavg()[0] > cores:
        return 0
    own = cores // PartialState().num_processes
    return min(MAX_WORKERS, own) if own > 1 else 0


def prepare_images(
    splits: Mapping[str, Dataset], preparation: Preparation | None = None
) -> Prepared:
    """All that is needed of the images of these splits, from the store or by one pass.

    Without a preparation there are no pixels. Where they cannot be kept, the log says why; the
    processor then runs for each batch.
    """
    first = next(iter(splits.values()))
    plain = ImagePass(_thumbnail_side(first))
    if preparation is None:
        return Prepared(_prepare_each(splits, plain))
    encoder = preparation.encoder
    cache = preparation.cache
    plain = replace(plain, mode=encoder.mode or "RGB")
    reason = NotPreparedError("--cache_inputs false")
    if cache.cache_inputs != "false":
        try:
            sample = _sample(first, plain.mode)
            parts = split_processor(preparation.processor, sample)
            complete = replace(plain, parts=parts, facts=encoder.facts, cache=cache)
            return Prepared(_prepare_each(splits, complete), encoder, parts)
        except NotPreparedError as error:
            reason = error
    level = logging.WARNING if cache.cache_inputs == "true" else logging.INFO
    log.log(level, "images are decoded in every epoch: %s", reason)
    return Prepared(_prepare_each(splits, plain), encoder)


def _prepare_each(splits: Mapping[str, Dataset], images: ImagePass) -> dict[str, PreparedSplit]:
    """What a pass makes of each split. Raises NotPreparedError, on all processes the same."""
    made: dict[str, PreparedSplit] = {}
    reason = None
    with PartialState().local_main_process_first():  # it fills the store, the others read it
        try:
            made = {name: _prepare(split, images) for name, split in splits.items()}
        except NotPreparedError as error:
            reason = str(error)
    reason = next(filter(None, gather_object([reason])), None)
    if reason:
        raise NotPreparedError(reason)
    return made


def _prepare(split: Dataset, images: ImagePass) -> PreparedSplit:
    """What a pass makes of a split. Raises NotPreparedError where it cannot be stored."""
    digests, nbytes = _digests(split)
    if not digests:
        empty = np.zeros((0, images.side, images.side), np.uint8)
        return PreparedSplit((), (), empty, np.zeros(0, np.uint64), None)
    if images.cache is None:
        rows = list(itertools.chain.from_iterable(images.run(split, digests, nbytes)))
        columns = {name: np.stack(list(map(itemgetter(name), rows))) for name in (THUMBNAIL, HASH)}
        facts = list(map(itemgetter(FACTS), rows))
    else:
        stored = _load_or_store(split, images, images.cache, digests, nbytes)
        columns = dict(stored.values)
        facts = [row[FACTS] for row in map(stored.__getitem__, range(len(stored)))]
    found = tuple(tuple(json.loads(each.tobytes())) for each in facts)
    return PreparedSplit(digests, found, columns[THUMBNAIL], columns[HASH], columns.get(PIXELS))


def _load_or_store(
    split: Dataset,
    images: ImagePass,
    cache: CacheConfig,
    digests: Sequence[str],
    nbytes: int,
) -> Activations:
    assert images.parts
    folder = resolve_cache_dir(cache.cache_dir)
    facts = {"encoder": dict(images.facts), "side": images.side, "rows": list(digests)}
    key = digest({"images": VERSION, **facts})
    stored = open_activations(folder, key)
    if stored is not None:
        return stored
    needed = len(split) * (math.prod(images.parts.shape) + images.side**2)
    reason = room_for(folder, needed, cache.cache_limit_gb)
    if reason:
        raise NotPreparedError(reason)
    about = {"images": len(split), "processor": str(images.facts["class"])}
    try:
        batches = images.run(split, digests, nbytes)
        return write_activations(folder, key, len(split), batches, about)
    except NotWrittenError as error:
        raise NotPreparedError(str(error)) from error


def _describe(opened: OpenedImage, side: int) -> Row:
    """The columns of an image that need no processor."""
    grey = PILImage.new("L", (side, side))
    if opened.image is not None:
        grey = opened.image.resize((side, side), reducing_gap=REDUCING_GAP).convert("L")
    steps = np.asarray(grey.resize(HASH_SIZE), np.int16)
    facts = json.dumps([opened.reason, opened.kind]).encode()
    return {
        FACTS: np.frombuffer(facts, np.uint8),
        THUMBNAIL: np.asarray(grey),
        HASH: np.packbits(steps[:, 1:] > steps[:, :-1]).view(np.uint64)[0],
    }


def _digests(split: Dataset) -> tuple[tuple[str, ...], int]:
    """The digests of the files of a split, in hex, and the size of all; "" of what has no file."""
    digests = []
    nbytes = 0
    for row in stored_rows(split.select_columns("image")):
        content = _content(row["image"])
        digests.append(_digest(content))
        nbytes += len(content)
    return tuple(digests), nbytes


def _content(stored: Mapping[str, Any] | None) -> bytes:
    """The content of an image file; none of what cannot be read."""
    with suppress(OSError):
        return image_bytes(stored) if stored and any(stored.values()) else b""
    return b""


def _digest(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content) if content else ""


def _sample(split: Dataset, mode: Mode) -> list[PILImage.Image]:
    """Some images of a split that can be read, at even distances."""
    chosen = np.linspace(0, len(split) - 1, min(SAMPLE_ROWS, len(split))).astype(int)
    others = range(min(MAX_TRIED, len(split)))
    rows = stored_rows(split.select_columns("image").select([*chosen, *others]))
    readable = filter(None, (open_image(row["image"], mode).image for row in rows))
    return list(itertools.islice(readable, len(chosen)))


def _thumbnail_side(split: Dataset) -> int:
    """Side of the thumbnails, at most that of the smallest of the first images."""
    sides = [MAX_SIDE]
    for row in stored_rows(split.select_columns("image").select(range(min(100, len(split))))):
        with suppress(*DAMAGE):
            sides.append(min(PILImage.open(io.BytesIO(_content(row["image"]))).size))
    return min(sides)
