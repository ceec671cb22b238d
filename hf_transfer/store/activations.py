"""A store on disk of what a frozen network says of every row of a dataset, under a key. It knows nothing of models.

An entry is a folder `<key>.activations`, of the files in training/entry.py. It appears whole, by a rename, or not at
all.
"""

import hashlib
import json
import logging
import mmap
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hf_transfer.store.columns import (
    MANIFEST,
    DamageError,
    NotWritten,
    map_file,
    read_manifest,
    refusals,
    sync,
    write_entry,
)

log = logging.getLogger(__name__)

_SUFFIX = ".activations"
_ENTRY = re.compile(r"[\w-]{1,128}\.activations", re.ASCII)
_TEMPORARY = re.compile(r"\.[\w-]+\.(?P<host>[0-9a-f]{12})\.(?P<pid>\d+)\.[0-9a-f]{12}\.tmp")
_DAY = 86_400
_FREE_FOR_OTHERS = 10**9  # bytes of the disk that are left alone


@dataclass(frozen=True)
class Activations:
    """What is stored under one key, memory-mapped and read-only. It pickles as its address, not as its content.

    `values`, a name: (rows, *shape) or, where there are `offsets` (rows + 1), (all lengths, *rest). `dtypes`: the true
    ones. Numpy has no bfloat16: it comes as uint16 bits, for `torch.from_numpy(bits.copy()).view(torch.bfloat16)`.
    """

    folder: Path
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
        found = {}
        for name, values in self.values.items():
            ends = self.offsets.get(name)
            found[name] = values[row, ...] if ends is None else values[ends[row] : ends[row + 1]]
        return found

    def forget(self) -> None:
        """Give the memory of what was read back to the system, which may still have it when it is read again."""
        for array in (*self.values.values(), *self.offsets.values()):
            if isinstance(array.base, np.memmap):
                array.base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (self.folder, self.key, False)


@dataclass(frozen=True)
class Entry:
    """A line of the list: `rows` is None where the manifest cannot be trusted; `last_used` is in Unix seconds."""

    key: str
    nbytes: int
    rows: int | None
    last_used: float
    about: Mapping[str, Any]


def cache_folder(asked: str | None) -> Path:
    """The folder of the store: the one asked for, else <HF_HOME>/hf_transfer/frozen. It need not exist."""
    if asked:
        return Path(asked).expanduser().absolute()
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_transfer" / "frozen"


def digest(facts: Mapping[str, Any]) -> str:
    """A key for these facts: sha256 in hex, whatever the order of keys.

    Facts are what JSON knows, bytes, and numpy arrays of numbers, whose dtype and shape count. As in JSON 1 is not 1.0,
    but a tuple is a list and a key 1 is "1". Raises TypeError for anything else.
    """
    return hashlib.sha256(
        json.dumps(facts, sort_keys=True, default=_fingerprint).encode()
    ).hexdigest()


def _fingerprint(value: Any) -> dict[str, Any]:
    """What JSON does not know, in its terms."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    array = np.asarray(value)
    if (
        not isinstance(value, np.ndarray | np.generic)
        or array.dtype.kind not in "biufc"
        or np.ma.isMA(value)
    ):
        raise TypeError(
            f"no canonical form of a {type(value).__name__}: give numbers, text, bytes, arrays of numbers"
        )
    array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    content = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
    return {f"array {array.dtype.str} {array.shape}": content}


def open_activations(folder: Path, key: str) -> Activations | None:
    """What is stored under the key, or None. What is damaged or incomplete is said in the log, and removed.

    Sizes are compared at every open, the checksum of all content at the first one in a process.
    """
    path = _place(folder, key)
    try:
        identity = path.stat().st_ino
    except OSError:
        return None
    try:
        return _attach(folder, key)
    except DamageError as damage:
        log.warning(
            "stored activations are damaged and will be computed again: %s: %s", path, damage
        )
        # Not another one, that has come since.
        with suppress(OSError):
            if path.stat().st_ino == identity:
                _remove(path)
    except OSError as error:
        log.warning("stored activations cannot be read: %s: %s", path, error)
    return None


def write_activations(
    folder: Path,
    key: str,
    rows: int,
    batches: Iterable[list[dict[str, np.ndarray]]],
    about: Mapping[str, Any],
    bfloat16: Collection[str] = (),
) -> Activations:
    """What was just stored, opened; where another process was faster, what that one stored under the same key.

    A batch is a list of rows, a row an array a name: of any number of dimensions, alike but for the length of the
    first. Names in `bfloat16` come as uint16 bits. `about` is JSON for people. Memory is that of a batch or two.
    Raises NotWritten where the disk does not take it, ValueError or TypeError where the rows are not `rows` in
    number or not alike; errors of `batches` pass through. After any of them nothing is left behind.
    """
    about = json.loads(json.dumps(dict(about)))
    temporary = temporary_folder(_place(folder, key))
    with refusals():
        folder.mkdir(parents=True, exist_ok=True)
        for path in filter(_is_stale, _folders(folder)):
            _remove(path)
        temporary.mkdir()
    try:
        write_entry(temporary, key, rows, batches, about, bfloat16)
        with refusals():
            return _publish(temporary, folder, key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def estimate_bytes(sample: Sequence[dict[str, np.ndarray]], rows: int) -> int:
    """Bytes on disk of so many rows that are on average like those of the sample. Raises ValueError if it is empty."""
    if not sample:
        raise ValueError("an empty sample says nothing of the size")
    total = 0
    for name in sample[0]:
        arrays = [row[name] for row in sample]
        total += -(-sum(array.nbytes for array in arrays) * rows // len(sample))
        if len({array.shape for array in arrays}) > 1:
            total += 8 * (rows + 1)
    return total


def room_for(folder: Path, needed: int, limit_gb: float) -> str | None:
    """None if so many bytes more fit into the store, else a clause that says why not; a GB is 10^9 bytes."""
    used = sum(_size_of(path) for path in _folders(folder))
    if used + needed > limit_gb * 1e9:
        there = f" beside the {show_bytes(used)} already there" if used else ""
        return f"{show_bytes(needed)}{there} are more than --cache_limit_gb {limit_gb:g}"
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(above).free
    if needed + _FREE_FOR_OTHERS > free:
        return (
            f"{show_bytes(needed)} are too much for a disk with {show_bytes(free)} free at {above}"
        )
    return None


def list_entries(folder: Path) -> list[Entry]:
    """What is in the store, the last used first; only sizes and manifests are looked at."""
    found = []
    for path in _folders(folder):
        # One may go while we look.
        with suppress(FileNotFoundError):
            if path.suffix == _SUFFIX:
                last_used = next(path.glob(MANIFEST), path).stat().st_mtime
                facts: dict[str, Any] = {"rows": None, "about": {}}
                with suppress(DamageError):
                    facts = read_manifest(path, check=False)
                found.append(
                    Entry(path.stem, _size_of(path), facts["rows"], last_used, facts["about"])
                )
    return sorted(found, key=lambda entry: -entry.last_used)


def prune(
    folder: Path,
    *,
    older_than: float | None = None,
    until_below: int | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> int:
    """Bytes freed, or that would be: leftovers of killed runs and damaged entries in any case, and what is asked for.

    `older_than`: entries not used for so many seconds. `until_below`: the longest unused ones, until the rest takes
    fewer bytes. `everything`: all. Who has an entry open keeps its content.
    """
    gone, kept = [path for path in _folders(folder) if _is_stale(path)], 0
    for entry in list_entries(folder):
        old = older_than is not None and time.time() - entry.last_used > older_than
        beyond = until_below is not None and kept + entry.nbytes >= until_below
        if everything or old or beyond or entry.rows is None:
            gone.append(_place(folder, entry.key))
        else:
            kept += entry.nbytes
    freed = sum(_size_of(path) for path in gone)
    for path in gone if not dry_run else []:
        _remove(path)
    return freed


def show_bytes(number: int) -> str:
    """The number as people read it, in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def _publish(temporary: Path, folder: Path, key: str) -> Activations:
    """The entry in its place, this one or one that came first."""
    path = _place(folder, key)
    for _ in range(3):
        try:
            temporary.rename(path)
        except OSError:
            if not path.exists():
                raise
            if (faster := open_activations(folder, key)) is not None:
                return faster
        else:
            sync(folder)
            return _attach(folder, key)
    raise NotWritten(f"{path} is in the way and cannot be removed")


def _attach(folder: Path, key: str, check: bool = True) -> Activations:
    """An entry, mapped. Raises DamageError."""
    path = _place(folder, key)
    entry = read_manifest(path, check)
    dtypes, values, offsets = {}, {}, {}
    for column in entry["columns"]:
        name, files = column["name"], [path / file["name"] for file in column["files"]]
        dtypes[name] = column["dtype"]
        values[name] = map_file(
            files[0], column["dtype"].replace("bfloat16", "uint16"), column["shape"]
        )
        if len(files) > 1:
            offsets[name] = map_file(files[1], "int64", [entry["rows"] + 1])
    # Its time is that of the last use; a store of others may be read-only.
    with suppress(OSError):
        os.utime(path / MANIFEST)
    return Activations(folder, key, entry["rows"], _size_of(path), dtypes, values, offsets)


def _place(folder: Path, key: str) -> Path:
    if not _ENTRY.fullmatch(key + _SUFFIX):
        raise ValueError(
            f"the key {key!r} cannot name a folder: letters, digits, _ and - only, at most 128"
        )
    return folder / (key + _SUFFIX)


def _folders(folder: Path) -> list[Path]:
    """The store's own folders, entries and temporary ones; others may lie beside them."""
    if not folder.is_dir():
        return []
    return sorted(
        p for p in folder.iterdir() if _ENTRY.fullmatch(p.name) or _TEMPORARY.fullmatch(p.name)
    )


def _size_of(path: Path) -> int:
    total = 0
    for file in path.glob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def temporary_folder(path: Path) -> Path:
    """A new name beside an entry, which says whose it is; what is left of a process that died is removed by others."""
    return path.with_name(f".{path.stem}.{_host()}.{os.getpid()}.{secrets.token_hex(6)}.tmp")


@cache
def _host() -> str:
    """This machine since it started, and this container: where a process id means something."""
    facts = [platform.node()]
    with suppress(OSError):
        facts += [
            Path("/proc/sys/kernel/random/boot_id").read_text(),
            str(Path("/proc/self/ns/pid").stat().st_ino),
        ]
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:12]


def _is_stale(path: Path) -> bool:
    """Whether this is a temporary folder that nobody writes to any more."""
    name = _TEMPORARY.fullmatch(path.name)
    if name is None:
        return False
    if name["host"] == _host():
        return not psutil.pid_exists(int(name["pid"]))
    with suppress(FileNotFoundError):
        return time.time() - max(p.stat().st_mtime for p in (path, *path.glob("*"))) > _DAY
    return False


def _remove(path: Path) -> None:
    """Let a folder vanish at once, then free its files."""
    gone = path if _TEMPORARY.fullmatch(path.name) else temporary_folder(path)
    with suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
