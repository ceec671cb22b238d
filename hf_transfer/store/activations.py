"""Cached activations: what a frozen network computes for every row of a dataset, under a key."""

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer import sealed
from hf_transfer.sealed import DamageError, NotWrittenError, report_disk_errors
from hf_transfer.store import entries
from hf_transfer.store.columns import map_file, write_columns
from hf_transfer.store.entries import entry_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activations:
    """An entry of the store, memory-mapped and read-only. Pickled, it is its address only.

    Attributes:
        values: Name -> (rows, *shape) or, for a name with offsets, (sum of lengths, *rest).
        offsets: Name -> (rows + 1) of the names whose rows differ in length.
        dtypes: Name -> the true dtype. Numpy has no bfloat16: its values are uint16 bits, read by
            `torch.from_numpy(bits.copy()).view(torch.bfloat16)`.
        nbytes: Bytes of the entry on disk.
    """

    cache_dir: Path
    key: str
    rows: int
    nbytes: int
    dtypes: Mapping[str, str]
    values: Mapping[str, np.ndarray]
    offsets: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        row = range(self.rows)[row]
        arrays = {}
        for name, values in self.values.items():
            ends = self.offsets.get(name)
            arrays[name] = values[row, ...] if ends is None else values[ends[row] : ends[row + 1]]
        return arrays

    def forget(self) -> None:
        """Give the memory of what was read back to the system, which may still cache it."""
        for array in (*self.values.values(), *self.offsets.values()):
            # Windows has no such call; it reclaims mapped pages on its own.
            if isinstance(array.base, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                array.base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return _map_entry, (self.cache_dir, self.key, "sizes")


def digest(facts: Mapping[str, Any]) -> str:
    """A key for these facts: sha256 in hex, whatever the order of keys.

    Facts are JSON values, bytes, and numpy arrays of numbers, whose dtype and shape count. As in
    JSON 1 is not 1.0, but a tuple is a list and a key 1 is "1". Raises TypeError for other values.
    """
    text = json.dumps(facts, sort_keys=True, default=_fingerprint)
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(value: Any) -> dict[str, Any]:
    """A JSON form of what JSON does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    array = np.asarray(value)
    is_array = isinstance(value, np.ndarray | np.generic) and not np.ma.isMA(value)
    if not is_array or array.dtype.kind not in "biufc":
        raise TypeError(
            f"no canonical form of a {type(value).__name__}: "
            "give numbers, text, bytes, arrays of numbers"
        )
    array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    content = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
    return {f"array {array.dtype.str} {array.shape}": content}


def open_activations(cache_dir: Path, key: str) -> Activations | None:
    """The entry of a key, or None. A damaged or incomplete one is logged and removed.

    Sizes are compared each time, the checksums of the content the first time in a process.
    """
    path = entry_path(cache_dir, key)
    try:
        identity = path.stat().st_ino
    except OSError:
        return None
    try:
        return _map_entry(cache_dir, key)
    except DamageError as damage:
        log.warning(
            "stored activations are damaged and will be computed again: %s: %s", path, damage
        )
        # Only this one: another process may have replaced it since.
        with suppress(OSError):
            if path.stat().st_ino == identity:
                entries.remove_entry(path)
    except OSError as error:
        log.warning("stored activations cannot be read: %s: %s", path, error)
    return None


def write_activations(
    cache_dir: Path,
    key: str,
    rows: int,
    batches: Iterable[list[dict[str, np.ndarray]]],
    about: Mapping[str, Any],
    bfloat16: Collection[str] = (),
) -> Activations:
    """Store activations under a key and return them, opened.

    If another process was faster, its entry of the same key is returned. Memory is that of a batch
    or two.

    Args:
        rows: Number of rows of all batches together.
        batches: Lists of rows. A row is an array for each name, of any number of dimensions; rows
            may differ in the length of the first only.
        about: JSON for people.
        bfloat16: Names whose arrays are bfloat16 as uint16 bits.

    Raises NotWrittenError if the disk cannot take them, ValueError or TypeError if the rows are not
    `rows` in number or not alike; errors of `batches` pass through. None of them leaves any file.
    """
    about = json.loads(json.dumps(dict(about)))
    path = entry_path(cache_dir, key)
    with ExitStack() as contexts:
        with report_disk_errors(cache_dir):
            for abandoned in filter(sealed.is_abandoned, entries.list_folders(cache_dir)):
                entries.remove_entry(abandoned)
            stage = contexts.enter_context(sealed.staged_folder(path))
        columns = write_columns(stage, rows, batches, bfloat16)
        entry = {"key": key, "rows": rows, "columns": columns, "about": about}
        with report_disk_errors(cache_dir):
            sealed.write_manifest(stage, entry)
            return _publish(stage, cache_dir, key)


def estimate_bytes(sample: Sequence[dict[str, np.ndarray]], rows: int) -> int:
    """Bytes on disk of `rows` rows that are on average like those of the sample.

    Raises ValueError if the sample is empty.
    """
    if not sample:
        raise ValueError("an empty sample says nothing of the size")
    total = 0
    for name in sample[0]:
        arrays = [row[name] for row in sample]
        total += -(-sum(array.nbytes for array in arrays) * rows // len(sample))
        if len({array.shape for array in arrays}) > 1:
            total += 8 * (rows + 1)
    return total


def _publish(stage: Path, cache_dir: Path, key: str) -> Activations:
    """The entry under its final name: this one, or another process's that came first."""
    path = entry_path(cache_dir, key)
    for _ in range(3):
        try:
            sealed.publish(stage, path)
        except OSError:
            if not path.exists():
                raise
            faster = open_activations(cache_dir, key)
            if faster is not None:
                return faster
        else:
            return _map_entry(cache_dir, key)
    raise NotWrittenError(f"{path} is in the way and cannot be removed")


def _map_entry(cache_dir: Path, key: str, check: sealed.Check = "once") -> Activations:
    """An entry, memory-mapped. Raises DamageError and OSError."""
    path = entry_path(cache_dir, key)
    entry = entries.read_entry(path, check)
    dtypes = {}
    values = {}
    offsets = {}
    for column in entry["columns"]:
        name = column["name"]
        dtypes[name] = column["dtype"]
        bits = column["dtype"].replace("bfloat16", "uint16")
        file, *more = column["files"]
        values[name] = map_file(path / file["name"], bits, column["shape"])
        for file in more:
            offsets[name] = map_file(path / file["name"], "int64", [entry["rows"] + 1])
    # The time of the manifest is that of the last use; a store of others may be read-only.
    with suppress(OSError):
        os.utime(path / sealed.MANIFEST)
    nbytes = entries.folder_size(path)
    return Activations(cache_dir, key, entry["rows"], nbytes, dtypes, values, offsets)
