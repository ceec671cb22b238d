"""What the frozen part of a network gives for every row: read from the store, or computed in one pass."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from accelerate import PartialState
from datasets import Dataset, Image
from tqdm.auto import tqdm

from hf_transfer.data.checks import content_digest
from hf_transfer.data.encode import Collate, Encoder
from hf_transfer.strategies.plan import CacheSettings
from hf_transfer.training.cache import (
    Activations,
    NotWritten,
    cache_folder,
    digest,
    estimate_bytes,
    open_activations,
    room_for,
    write_activations,
)
from hf_transfer.training.frozen import RECORDED, CheckedSplit

log = logging.getLogger(__name__)

SAMPLE = 8  # rows that are computed both ways, and tell the size of all
Row = dict[str, np.ndarray]


@dataclass(frozen=True)
class FrozenPart:
    """What a frozen part is: a split model, the batches it takes, and the parameters that it does not depend on."""

    split: CheckedSplit
    model: Any
    boundary: str
    above: frozenset[str]  # names of the parameters of the rest
    encoder: Encoder
    batch_size: int
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Computed:
    """What a frozen part gives for all rows of a split: `stored[position[row]]` are the arrays of a row."""

    stored: Activations | list[Row]
    position: np.ndarray
    passes: int
    nbytes: int
    seconds: float

    def read(self, row: int) -> Row:
        """The arrays of a row of the split."""
        return self.stored[self.position[row]]

    def matrix(self, name: str) -> np.ndarray:
        """(rows, width) of an array that has one axis a row."""
        return np.stack([self.read(row)[name] for row in range(len(self.position))])


def compute(part: FrozenPart, rows: Dataset, cache: CacheSettings, keep: bool = False) -> Computed | None:
    """What the frozen part gives for all rows: from the store where it is there, else computed and stored.

    None where the store has no room, and the log says so; with `keep` it is then kept in memory. On several processes
    the first computes, and the others read. Raises UnsplittableError from the split's first batch.
    """
    began = time.perf_counter()
    order = np.argsort(rows["length"][:], kind="stable") if part.encoder.by_length else np.arange(len(rows))
    position = np.argsort(order, kind="stable")
    some = order[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)]
    first = _rows_of_batch(part, rows, some)  # also proves that the model can be split
    if not cache.on:
        return _in_memory(part, rows, order, began) if keep else None
    folder, key = cache_folder(cache.folder), digest(_facts(part, rows))
    stored, passes = open_activations(folder, key), 0
    if stored is None:
        reason = room_for(folder, estimate_bytes(first, len(rows)), cache.limit_gb)
        state = PartialState()
        if reason is None and state.is_main_process:
            reason = _store(part, rows, order, folder, key)
        state.wait_for_everyone()
        stored, passes = open_activations(folder, key), 1
        if stored is None:
            log.warning("what is frozen is not kept: %s", reason)
            return _in_memory(part, rows, order, began) if keep else None
    return Computed(stored, position, passes, stored.nbytes, time.perf_counter() - began)


def replay_collate(encoder: Encoder, computed: Sequence[Computed]) -> Collate:
    """The collator of light rows, whose frozen part is computed: ids, masks, labels, and what is stored, padded alike.

    `computed` is what there is of each split; a row says its split's place among them in "split", its own in "row".
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = encoder.light([{k: v for k, v in row.items() if k not in ("row", "split")} for row in rows])
        found = [computed[row["split"]].read(row["row"]) for row in rows]
        length = batch["input_ids"].shape[1] if "input_ids" in batch else 0
        for name in found[0]:
            batch[name] = _join([row[name] for row in found], length, encoder.pads_left)
        return batch

    return collate


def light_rows(rows: Dataset, split: int) -> Dataset:
    """The rows without what only the frozen part reads, each with its own number and its split's."""
    pictures = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    numbered = rows.remove_columns(pictures).add_column("row", list(range(len(rows))))
    return numbered.add_column("split", [split] * len(rows))


def _join(arrays: list[np.ndarray], length: int, left: bool) -> torch.Tensor:
    """One tensor (rows, ...), the first axis padded with zeros where lengths differ."""
    if len({array.shape for array in arrays}) == 1 and (arrays[0].ndim < 2 or len(arrays[0]) == length or not length):
        return torch.from_numpy(np.stack(arrays)).float()
    joined = torch.zeros(len(arrays), length, *arrays[0].shape[1:])
    for number, array in enumerate(arrays):
        place = slice(length - len(array), length) if left else slice(0, len(array))
        joined[number, place] = torch.from_numpy(np.array(array)).float()
    return joined


def _store(part: FrozenPart, rows: Dataset, order: np.ndarray, folder: Path, key: str) -> str | None:
    try:
        write_activations(folder, key, len(rows), _batches(part, rows, order), part.about)
    except NotWritten as error:
        return str(error)
    return None


def _in_memory(part: FrozenPart, rows: Dataset, order: np.ndarray, began: float) -> Computed:
    kept = [row for batch in _batches(part, rows, order) for row in batch]
    position = np.argsort(order, kind="stable")
    return Computed(kept, position, 1, 0, time.perf_counter() - began)


def _batches(part: FrozenPart, rows: Dataset, order: np.ndarray) -> Iterator[list[Row]]:
    starts = range(0, len(rows), part.batch_size)
    for start in tqdm(starts, desc="frozen part", disable=not PartialState().is_local_main_process):
        yield _rows_of_batch(part, rows, order[start : start + part.batch_size])


def _rows_of_batch(part: FrozenPart, rows: Dataset, chosen: np.ndarray) -> list[Row]:
    selected = list(rows.select(chosen))
    batch = part.encoder.collate(selected)
    batch.pop("labels")
    device = next(part.model.parameters()).device
    given = part.split.prefix({name: tensor.to(device) for name, tensor in batch.items()})
    arrays = {n: t.float().cpu().numpy() for n, t in given.items() if n.startswith(RECORDED) or n == "features"}
    padded = batch["input_ids"].shape[1] if part.encoder.by_length else None
    return [
        {
            name: _cut(array[number], row["length"], part.encoder.pads_left)
            if array.ndim > 2 and array.shape[1] == padded
            else array[number]
            for name, array in arrays.items()
        }
        for number, row in enumerate(selected)
    ]


def _cut(array: np.ndarray, length: int, left: bool) -> np.ndarray:
    return array[len(array) - length :] if left else array[:length]


def _facts(part: FrozenPart, rows: Dataset) -> dict[str, Any]:
    """All that decides what is computed. Labels, seeds and whatever lies above the boundary do not."""
    config = json.loads(part.model.config.to_json_string(use_diff=False))
    above = ("id2label", "label2id", "num_labels", "problem_type", "_name_or_path", "transformers_version", "dtype")
    return {
        "class": type(part.model).__name__,
        "config": {name: value for name, value in config.items() if name not in above},
        "boundary": part.boundary,
        "weights": _weights_digest(part),
        "encoder": part.encoder.facts,
        "rows": content_digest(rows, [n for n in rows.column_names if n not in ("label", "id", "length", "row")]),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "device": next(part.model.parameters()).device.type,
        "format": "float32",
    }


def _weights_digest(part: FrozenPart) -> str:
    """Of all parameters and buffers but those above the boundary."""
    found, owners = xxhash.xxh3_128(), {name.rpartition(".")[0] for name in part.above}
    for name, tensor in part.model.state_dict().items():
        if name.rpartition(".")[0] not in owners:
            found.update(name.encode())
            found.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).data)
    return found.hexdigest()
