"""What the frozen part of a network gives for every row: read from the store, or computed in one pass."""

import inspect
import itertools
import json
import logging
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, Image, concatenate_datasets
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_transfer.data.checks import content_digest
from hf_transfer.data.encode import Collate, Encoder
from hf_transfer.frozen.precision import in_bfloat16, in_dtype_of
from hf_transfer.frozen.split import RECORDED, CheckedSplit, UnsplittableError
from hf_transfer.sealed import NotWrittenError, temporary_path
from hf_transfer.store.activations import (
    Activations,
    digest,
    estimate_bytes,
    open_activations,
    write_activations,
)
from hf_transfer.store.entries import resolve_cache_dir, room_for
from hf_transfer.strategies.plan import CacheSettings

log = logging.getLogger(__name__)

VERSION = 1  # of what is computed here: a new one makes every stored entry a miss
SAMPLE = 8  # rows that are computed both ways, and tell the size of all
MOST_DIFFERENCE = 0.03  # of activations in bfloat16 from those in 32 bits; its own rounding, over some layers, is below
MOST_OF_PADDING = 1e-3  # that padding may change, in 32 bits; where it counts, training sees another one in each epoch
Row = dict[str, np.ndarray]


@dataclass(frozen=True)
class FrozenPart:
    """What a frozen part is: a split model, the batches it takes, and the parameters that it does not depend on.

    `view` 0 takes pictures as they are, any other as `augment`, called `augmentation`, changes them then.
    """

    split: CheckedSplit
    model: Any
    boundary: str
    above: frozenset[str]  # names of the parameters of the rest
    encoder: Encoder
    batch_size: int
    workers: int = 0
    quiet: bool = False
    bfloat16: bool = False
    augmentation: str = "none"
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None
    view: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Computed:
    """What a frozen part gives for all rows of a split: `stored[position[row]]` are the arrays of a row."""

    stored: Activations | list[Row]
    position: np.ndarray
    passes: int
    nbytes: int
    seconds: float

    def read(self, row: int) -> dict[str, torch.Tensor]:
        """The tensors of a row of the split, in 32 bits."""
        return {name: _as_tensor(array) for name, array in self.stored[self.position[row]].items()}

    def forget(self) -> None:
        """Keep nothing of what was read in memory: it must not grow with the rows."""
        if isinstance(self.stored, Activations):
            self.stored.forget()

    def matrix(self, name: str) -> np.ndarray:
        """(rows, width) of an array that has one axis a row, in 32 bits."""
        if isinstance(self.stored, Activations):
            return _as_tensor(self.stored.values[name][self.position]).numpy()
        return torch.stack([self.read(row)[name] for row in range(len(self.position))]).numpy()


def compute(
    part: FrozenPart, rows: Dataset, cache: CacheSettings, keep: bool = False
) -> Computed | None:
    """What the frozen part gives for all rows: from the store where it is there, else computed and stored.

    Several processes share the pass. None where the store has no room, and the log says so; with `keep` it is then kept
    in memory. Raises UnsplittableError from the split's first batch.
    """
    began = time.perf_counter()
    work, sample = _try(_in_order(part, rows))
    found = _find_or_store(work, sample, cache) if cache.on else None
    if found is None and not keep:
        return None
    stored, passes = found or ([row for batch in work.run(work.batches) for row in batch], 1)
    nbytes = stored.nbytes if isinstance(stored, Activations) else 0
    return Computed(
        stored, np.argsort(work.order, kind="stable"), passes, nbytes, time.perf_counter() - began
    )


def estimate(part: FrozenPart, rows: Dataset, count: int) -> int:
    """Bytes that `compute` would store for `count` rows which are like these. Raises UnsplittableError as it does."""
    return estimate_bytes(_try(_in_order(part, rows))[1], count)


def replay_collate(encoder: Encoder, computed: Sequence[Sequence[Computed]]) -> Collate:
    """The collator of light rows, whose frozen part is computed: ids, masks, labels, and what is stored, padded alike.

    `computed` is what there is of each split, view by view; a row says its split's place among them in "split", its own
    in "row", and which view of it is meant in "view".
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = encoder.light(
            [{k: v for k, v in row.items() if k not in ("row", "split", "view")} for row in rows]
        )
        found = [computed[row["split"]][row["view"]].read(row["row"]) for row in rows]
        length = batch["input_ids"].shape[1] if "input_ids" in batch else 0
        for name in found[0]:
            batch[name] = _join([row[name] for row in found], length, encoder.pads_left)
        for each in itertools.chain(*computed):
            each.forget()
        return batch

    return collate


def light_rows(rows: Dataset, split: int, views: int = 1) -> Dataset:
    """The rows without what only the frozen part reads, each with its own number and its split's; once a view."""
    pictures = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    numbered = rows.remove_columns(pictures).add_column("row", list(range(len(rows))))
    light = numbered.add_column("split", [split] * len(rows))
    return concatenate_datasets(
        [light.add_column("view", [view] * len(rows)) for view in range(views)]
    )


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """In 32 bits; bfloat16 is stored as its bits."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.copy()).view(torch.bfloat16).float()
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _join(tensors: list[torch.Tensor], length: int, left: bool) -> torch.Tensor:
    """One tensor (rows, ...); where lengths differ, the first axis is padded with zeros to `length`."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    joined = torch.zeros(len(tensors), length, *tensors[0].shape[1:])
    for number, tensor in enumerate(tensors):
        joined[number, slice(length - len(tensor), length) if left else slice(0, len(tensor))] = (
            tensor
        )
    return joined


@dataclass(frozen=True)
class _Pass:
    """A frozen part over rows in an order; `lengths` in tokens, 0 for pictures."""

    part: FrozenPart
    rows: Dataset
    lengths: np.ndarray
    order: np.ndarray

    @property
    def batches(self) -> list[np.ndarray]:
        size = self.part.batch_size
        return [self.order[start : start + size] for start in range(0, len(self.order), size)]

    def run(self, batches: Sequence[np.ndarray], quiet: bool = False) -> Iterator[list[Row]]:
        """What the part gives for batches of row numbers: a list of rows each."""
        loader = DataLoader(
            self.rows,
            batch_sampler=[batch.tolist() for batch in batches],
            collate_fn=self.part.encoder.collate,
            num_workers=0 if quiet else self.part.workers,
        )
        silent = quiet or self.part.quiet or not PartialState().is_local_main_process
        for batch, inputs in zip(
            batches, tqdm(loader, desc="frozen part", disable=silent), strict=True
        ):
            yield self._cut(inputs, self.lengths[batch], int(batch[0]))

    def _cut(self, inputs: dict[str, torch.Tensor], lengths: np.ndarray, first: int) -> list[Row]:
        """A row's arrays each, without padding."""
        part, padded = self.part, int(lengths.max())
        device = next(part.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in inputs.items() if name != "labels"}
        if part.view and part.augment:
            with torch.random.fork_rng():
                torch.manual_seed(
                    part.view * len(self.rows) + first
                )  # the same whichever process has the batch
                inputs["pixel_values"] = part.augment(inputs["pixel_values"])
        with in_bfloat16(part.model) if part.bfloat16 else nullcontext():
            given = part.split.prefix(in_dtype_of(part.model, inputs))
        arrays = {
            n: _as_array(t, part.bfloat16)
            for n, t in given.items()
            if n.startswith(RECORDED) or n == "features"
        }
        ragged = {
            name
            for name, array in arrays.items()
            if padded and array.ndim > 2 and array.shape[1] == padded
        }
        return [
            {
                name: self._unpadded(array[n], length) if name in ragged else array[n]
                for name, array in arrays.items()
            }
            for n, length in enumerate(lengths)
        ]

    def _unpadded(self, array: np.ndarray, length: int) -> np.ndarray:
        return array[len(array) - length :] if self.part.encoder.pads_left else array[:length]


def _in_order(part: FrozenPart, rows: Dataset) -> _Pass:
    """The longest first: what does not fit into memory shows at once."""
    lengths = np.asarray(rows["length"][:]) if part.encoder.by_length else np.zeros(len(rows), int)
    return _Pass(part, rows, lengths, np.argsort(-lengths, kind="stable"))


def _try(work: _Pass) -> tuple[_Pass, list[Row]]:
    """The pass, in 32 bits where fewer change too much, and what it gives for a sample; this proves the split, too."""
    count = min(SAMPLE, len(work.order))
    some = work.order[
        ((np.arange(count) + 0.5) / count * len(work.order)).astype(int)
    ]  # of all lengths, as all rows
    precise = replace(work, part=replace(work.part, bfloat16=False))
    sample, short = precise.run([some, some[-1:]], quiet=True)
    missing = work.part.split.needs - set(work.part.encoder.light(list(work.rows.select(some))))
    if missing:
        raise UnsplittableError(
            f"its upper part reads {', '.join(sorted(missing))} too, which are not kept"
        )
    for name, array in short[0].items():
        if array.shape != sample[-1][name].shape:
            raise UnsplittableError(
                f"the shape of {name} depends on the length of the batch, not of the row"
            )
    if work.part.encoder.by_length and _difference(short[-1], sample[-1]) > MOST_OF_PADDING:
        raise UnsplittableError("what it gives for a row depends on the padding beside it")
    if not work.part.bfloat16:
        return work, sample
    (halved,) = work.run([some], quiet=True)
    worst = max(_difference(a, b) for a, b in zip(halved, sample, strict=True))
    reason = _agreed(None if worst <= MOST_DIFFERENCE else f"{worst:.1%}")
    if reason:
        log.warning("what is frozen is computed in 32 bits: bfloat16 changes it by %s", reason)
        return precise, sample
    return work, halved


def _difference(row: Row, other: Row) -> float:
    """The largest difference of an array of a row from that of the other, as a share of the latter's size."""
    pairs = [(_as_tensor(array), _as_tensor(other[name])) for name, array in row.items()]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)


def _agreed(reason: str | None) -> str | None:
    """The first reason of any process, so that all do the same."""
    return next((each for each in gather_object([reason]) if each), None)


def _find_or_store(
    work: _Pass, sample: list[Row], cache: CacheSettings
) -> tuple[Activations, int] | None:
    """What the store has, after a pass if need be, and the number of passes; the same in all processes."""
    folder, key = resolve_cache_dir(cache.folder), digest(_facts(work.part, work.rows))
    stored = open_activations(folder, key)
    if _agreed(None if stored else "it is not there") is None and stored is not None:
        return stored, 0
    needed = estimate_bytes(sample, len(work.rows))
    if PartialState().num_processes > 1:
        needed *= 2  # their parts, and all of it joined
    reason = _agreed(room_for(folder, needed, cache.limit_gb))
    reason = reason or _store(work, sample, folder / key)
    stored = None if reason else open_activations(folder, key)
    reason = _agreed(reason or (None if stored else "it vanished from the store"))
    if reason or stored is None:
        log.warning("what is frozen is not kept: %s", reason)
        return None
    return stored, 1


def _store(work: _Pass, sample: list[Row], place: Path) -> str | None:
    """Compute and store; why it could not be, if so, the same in all processes.

    The processes of a machine share the batches, and the first of them joins what they gave.
    """
    machines = gather_object([platform.node()])
    mates = [rank for rank, machine in enumerate(machines) if machine == platform.node()]
    mine = mates.index(PartialState().process_index)
    write = partial(
        _write,
        about=work.part.about,
        bits=[n for n, a in sample[0].items() if a.dtype == np.uint16],
    )
    if len(mates) == 1:
        return _agreed(write(place, len(work.rows), work.run(work.batches)))
    scratch, own = temporary_path(place), work.batches[mine :: len(mates)]
    reason = _agreed(write(scratch / "part", sum(map(len, own)), work.run(own)))
    parts = gather_object([str(scratch / "part")])
    if reason is None and mine == 0:
        reason = write(
            place, len(work.rows), _in_turn([Path(parts[rank]) for rank in mates], work.batches)
        )
    reason = _agreed(reason)
    shutil.rmtree(scratch, ignore_errors=True)
    return reason


def _write(
    place: Path, rows: int, given: Iterator[list[Row]], about: Mapping[str, Any], bits: list[str]
) -> str | None:
    """Why nothing could be stored, or None."""
    try:
        write_activations(place.parent, place.name, rows, given, about, bits)
    except NotWrittenError as error:
        return str(error)
    return None


def _in_turn(parts: Sequence[Path], batches: Sequence[np.ndarray]) -> Iterator[list[Row]]:
    """The batches that several processes have stored, in the order in which one would have computed them."""
    opened, done = [open_activations(part.parent, part.name) for part in parts], [0] * len(parts)
    for number, batch in enumerate(batches):
        which = number % len(parts)
        part, start = opened[which], done[which]
        if part is None:
            raise NotWrittenError(f"the part of process {which} is gone")
        yield [part[row] for row in range(start, start + len(batch))]
        done[which] += len(batch)


def _as_array(tensor: torch.Tensor, bfloat16: bool) -> np.ndarray:
    """In 32 bits, or the bits of bfloat16."""
    if bfloat16:
        return tensor.to(torch.bfloat16).cpu().contiguous().view(torch.uint16).numpy()
    return tensor.float().cpu().numpy()


def _facts(part: FrozenPart, rows: Dataset) -> dict[str, Any]:
    """All that decides what is computed. Labels, seeds and whatever lies above the boundary do not."""
    config = json.loads(part.model.config.to_json_string(use_diff=False))
    above = (
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "_name_or_path",
        "transformers_version",
        "dtype",
    )
    inputs = [name for name in rows.column_names if name not in ("label", "id", "length", "row")]
    view = (part.view, part.augmentation, part.batch_size, version("kornia")) if part.view else 0
    return {
        "ours": VERSION,
        "class": type(part.model).__name__,
        "code": _code_digest(part.model),
        "config": {name: value for name, value in config.items() if name not in above},
        "boundary": part.boundary,
        "positions": part.split.positions,
        "weights": _weights_digest(part),
        "encoder": part.encoder.facts,
        "rows": content_digest(rows, inputs),
        "view": view,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "device": next(part.model.parameters()).device.type,
        "format": "bfloat16" if part.bfloat16 else "float32",
    }


def _code_digest(model: nn.Module) -> str:
    """Of the source files of modules that no library's version stands for: remote code."""
    found = xxhash.xxh3_128()
    for name in sorted({type(module).__module__ for module in model.modules()}):
        if name.partition(".")[0] not in ("torch", "transformers"):
            found.update(Path(inspect.getfile(sys.modules[name])).read_bytes())
    return found.hexdigest()


def _weights_digest(part: FrozenPart) -> str:
    """Of all parameters and buffers but those above the boundary; buffers go with the parameters beside them."""
    found, beside = xxhash.xxh3_128(), {name.rpartition(".")[0] for name in part.above}
    parameters = dict(part.model.named_parameters(remove_duplicate=False))
    mixed = {name.rpartition(".")[0] for name in parameters if name not in part.above}
    for name, tensor in part.model.state_dict().items():
        owner = name.rpartition(".")[0]
        if name in part.above or (name not in parameters and owner in beside - mixed):
            continue
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).data)
    return found.hexdigest()
