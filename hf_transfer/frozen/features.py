"""The activations of the frozen layers for all rows: from the store, or computed in one pass."""

import itertools
import logging
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset

from hf_transfer.config.cache import CacheConfig
from hf_transfer.data.token_labels import IGNORED
from hf_transfer.frozen.cache_key import cache_key
from hf_transfer.frozen.forward_pass import (
    ForwardPass,
    FrozenLayers,
    Row,
    check_on_sample,
    first_reason,
    longest_first,
)
from hf_transfer.frozen.precision import to_float32
from hf_transfer.sealed import NotWrittenError, temporary_path
from hf_transfer.store.activations import (
    Activations,
    estimate_bytes,
    open_activations,
    write_activations,
)
from hf_transfer.store.entries import resolve_cache_dir, room_for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """The activations of all rows of a split: those of a row are `stored[place[row]]`.

    `stored` is memory-mapped where it is in the store. `passes` (0 or 1) and `seconds` are what it
    took to have them.
    """

    stored: Activations | list[Row]
    place: np.ndarray
    passes: int
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes in the store; 0 where they are in memory alone."""
        return self.stored.nbytes if isinstance(self.stored, Activations) else 0

    def read(self, row: int) -> dict[str, torch.Tensor]:
        """The activations of a row of the split, as float32."""
        return {name: to_float32(array) for name, array in self.stored[self.place[row]].items()}

    def matrix(self, name: str) -> np.ndarray:
        """(rows, width) of an activation that is a vector for each row, as float32."""
        if isinstance(self.stored, Activations):
            return to_float32(self.stored.values[name][self.place]).numpy()
        return torch.stack([self.read(row)[name] for row in range(len(self.place))]).numpy()

    def of_words(self, name: str, labels: Sequence[Sequence[int]]) -> np.ndarray:
        """(words, width) of an activation of every token: where the `labels` of a row are a tag."""
        words = []
        for row, own in enumerate(labels):
            words.append(self.read(row)[name].numpy()[np.asarray(own) != IGNORED])
        return np.concatenate(words)

    def release_memory(self) -> None:
        """Free the memory of what was read from disk: it must not grow with the rows."""
        if isinstance(self.stored, Activations):
            self.stored.forget()


def compute_features(
    layers: FrozenLayers, rows: Dataset, cache: CacheConfig, in_memory: bool = False
) -> Features | None:
    """The activations of all rows: from the store if they are there, else computed and stored.

    Several processes share the pass. None where the store is off or has no room, which the log
    says; with `in_memory` the activations are then kept in memory. Raises UnsplittableError from
    the first batch of the split.
    """
    began = time.perf_counter()
    forward_pass, sample = check_on_sample(longest_first(layers, rows))
    cached = _load_or_compute(forward_pass, sample, cache) if cache.cache_frozen else None
    if cached is None and not in_memory:
        return None
    batches = forward_pass.run(forward_pass.batches)
    stored, passes = cached or (list(itertools.chain.from_iterable(batches)), 1)
    # The inverse of the order in which they were computed.
    place = np.argsort(forward_pass.order, kind="stable")
    return Features(stored, place, passes, time.perf_counter() - began)


def estimate_features(layers: FrozenLayers, rows: Dataset, count: int) -> int:
    """Bytes that the activations of `count` rows like these take in the store.

    Raises UnsplittableError as `compute_features` does.
    """
    _, sample = check_on_sample(longest_first(layers, rows))
    return estimate_bytes(sample, count)


def _load_or_compute(
    forward_pass: ForwardPass, sample: list[Row], cache: CacheConfig
) -> tuple[Activations, int] | None:
    """The stored activations, after a pass if need be, and the number of passes.

    None, with a warning, if they cannot be stored. All processes return the same.
    """
    folder = resolve_cache_dir(cache.cache_dir)
    key = cache_key(forward_pass.layers, forward_pass.rows)
    stored = open_activations(folder, key)
    if first_reason(None if stored else "not in the store") is None and stored is not None:
        return stored, 0
    copies = min(2, PartialState().num_processes)  # the part of each process, the joined entry
    needed = copies * estimate_bytes(sample, len(forward_pass.rows))
    reason = first_reason(room_for(folder, needed, cache.cache_limit_gb))
    reason = reason or _compute_and_store(forward_pass, sample, folder / key)
    stored = None if reason else open_activations(folder, key)
    reason = first_reason(reason or (None if stored else "it vanished from the store"))
    if reason or stored is None:
        log.warning("the activations of the frozen layers are not cached: %s", reason)
        return None
    return stored, 1


def _compute_and_store(forward_pass: ForwardPass, sample: list[Row], entry: Path) -> str | None:
    """None if the activations are stored, else why not; the same in all processes.

    The processes of a machine share the batches, and the first of them joins their parts.
    """
    machines = gather_object([platform.node()])
    ranks = [rank for rank, machine in enumerate(machines) if machine == platform.node()]
    own = ranks.index(PartialState().process_index)
    rows = len(forward_pass.rows)
    batches = forward_pass.batches
    write = partial(
        _write,
        about=forward_pass.layers.about,
        bfloat16=[name for name, array in sample[0].items() if array.dtype == np.uint16],
    )
    if len(ranks) == 1:
        return first_reason(write(entry, rows, forward_pass.run(batches)))
    part = temporary_path(entry) / "part"
    own_batches = batches[own :: len(ranks)]
    own_rows = sum(map(len, own_batches))
    reason = first_reason(write(part, own_rows, forward_pass.run(own_batches)))
    parts = gather_object([part])
    if reason is None and own == 0:
        reason = write(entry, rows, _join([parts[rank] for rank in ranks], batches))
    reason = first_reason(reason)
    shutil.rmtree(part.parent, ignore_errors=True)
    return reason


def _write(
    entry: Path,
    rows: int,
    batches: Iterator[list[Row]],
    about: Mapping[str, Any],
    bfloat16: list[str],
) -> str | None:
    try:
        write_activations(entry.parent, entry.name, rows, batches, about, bfloat16)
    except NotWrittenError as error:
        return str(error)
    return None


def _join(parts: Sequence[Path], batches: Sequence[np.ndarray]) -> Iterator[list[Row]]:
    """The batches of several processes, in the order in which one process computes them."""
    rows = []  # of each part
    for process, path in enumerate(parts):
        part = open_activations(path.parent, path.name)
        if part is None:
            raise NotWrittenError(f"the part of process {process} vanished from the store")
        rows.append(map(part.__getitem__, range(len(part))))
    for number, batch in enumerate(batches):
        yield list(itertools.islice(rows[number % len(parts)], len(batch)))
