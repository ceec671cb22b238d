"""A store on disk of what a frozen network says of every row of a dataset, under a key. It knows nothing of models.

An entry is a folder `<key>.activations`: a flat file of values a name, rows one after the other along their first axis;
a file of offsets where lengths differ; `manifest.json`, written last, with the size and checksum of every file.
It appears whole, by a rename, or not at all.
"""

import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xxhash

log = logging.getLogger(__name__)

_FORMAT = 1
_MANIFEST = "manifest.json"
_SUFFIX = ".activations"
_ENTRY = re.compile(r"[\w-]{1,128}\.activations", re.ASCII)
_TEMPORARY = re.compile(r"\.[\w-]+\.(?P<host>[0-9a-f]{12})\.(?P<pid>\d+)\.[0-9a-f]{12}\.tmp")
_DAY = 86_400
_FREE_FOR_OTHERS = 10**9  # bytes of the disk that are left alone

# Files whose content this process has written or checked: device, inode, size, time of change, checksum.
_CHECKED: set[tuple[int, int, int, int, str]] = set()


class NotWritten(Exception):  # noqa: N818 - what happened, not what is wrong
    """The store could not take what was given (disk full, no permission); nothing of it is left behind."""


class _DamageError(Exception):
    """An entry is not what was written; the text says what is wrong."""


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
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_fingerprint).encode()).hexdigest()


def _fingerprint(value: Any) -> dict[str, Any]:
    """What JSON does not know, in its terms."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    array = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic) or array.dtype.kind not in "biufc" or np.ma.isMA(value):
        raise TypeError(f"no canonical form of a {type(value).__name__}: give numbers, text, bytes, arrays of numbers")
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
    except _DamageError as damage:
        log.warning("stored activations are damaged and will be computed again: %s: %s", path, damage)
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
    temporary = _temporary(_place(folder, key))
    with _refusals():
        folder.mkdir(parents=True, exist_ok=True)
        for path in filter(_is_stale, _folders(folder)):
            _remove(path)
        temporary.mkdir()
    try:
        columns = _write_columns(temporary, rows, batches, bfloat16)
        with _refusals():
            entry = {"format": _FORMAT, "key": key, "rows": rows, "columns": columns, "about": about}
            (temporary / _MANIFEST).write_bytes(_manifest_text(entry))
            _sync(temporary / _MANIFEST)
            _sync(temporary)
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
        return f"{show_bytes(needed)} are too much for a disk with {show_bytes(free)} free at {above}"
    return None


def list_entries(folder: Path) -> list[Entry]:
    """What is in the store, the last used first; only sizes and manifests are looked at."""
    found = []
    for path in _folders(folder):
        # One may go while we look.
        with suppress(FileNotFoundError):
            if path.suffix == _SUFFIX:
                last_used = next(path.glob(_MANIFEST), path).stat().st_mtime
                facts: dict[str, Any] = {"rows": None, "about": {}}
                with suppress(_DamageError):
                    facts = _read_manifest(path, check=False)
                found.append(Entry(path.stem, _size_of(path), facts["rows"], last_used, facts["about"]))
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


class _ColumnWriter:
    """The files of one name: values, and offsets; the first row says what the others must be like."""

    def __init__(self, path: Path, name: str, first: np.ndarray, files: ExitStack) -> None:
        if first.dtype.kind not in "biuf" or first.dtype.itemsize > 8:
            raise TypeError(f"{name!r} cannot be stored: {first.dtype}")
        self.name, self.dtype, self.shape = name, first.dtype, first.shape
        self.lengths: set[int] = set()
        self.rows, self.total = 0, 0
        # Offsets are kept from the start, as memory must not grow with the rows; without use they go at the end.
        self.paths = [path.with_suffix(".values"), path.with_suffix(".offsets")]
        self.files = [files.enter_context(path.open("xb", buffering=0)) for path in self.paths]
        self.hashes = [xxhash.xxh3_128(), xxhash.xxh3_128()]
        self._write(1, np.zeros(1, np.int64))

    def append(self, arrays: list[np.ndarray]) -> None:
        for array in arrays:
            if array.dtype != self.dtype or array.ndim != len(self.shape) or array.shape[1:] != self.shape[1:]:
                was, now = f"{self.dtype} {self.shape}", f"{array.dtype} {array.shape}"
                raise ValueError(f"{self.name!r} was {was}, now {now}: only the first axis may vary")
        lengths = [len(array) if self.shape else 1 for array in arrays]
        self.lengths = {*sorted({*self.lengths, *lengths})[:2]}
        ends = self.total + np.cumsum(lengths, dtype=np.int64)
        self.rows, self.total = self.rows + len(arrays), int(ends[-1])
        self._write(0, np.concatenate(arrays) if self.shape else np.stack(arrays))
        self._write(1, ends)

    def _write(self, number: int, array: np.ndarray) -> None:
        data = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).reshape(-1).view(np.uint8).data
        self.hashes[number].update(data)
        while data:
            data = data[self.files[number].write(data) :]

    def seal(self, is_bfloat16: bool) -> dict[str, Any]:
        """This name's part of the manifest, once its files are on the disk."""
        ragged, facts = len(self.lengths) > 1, []
        if not ragged:
            self.paths.pop().unlink()
        for path, file, content in zip(self.paths, self.files, self.hashes, strict=False):
            os.fsync(file.fileno())
            status, checksum = os.fstat(file.fileno()), content.hexdigest()
            _CHECKED.add(_identity(status, checksum))
            facts.append({"name": path.name, "bytes": status.st_size, "xxh3_128": checksum})
        shape = [self.total, *self.shape[1:]] if ragged else [self.rows, *self.shape]
        dtype = "bfloat16" if is_bfloat16 else self.dtype.name
        return {"name": self.name, "dtype": dtype, "shape": shape, "files": facts}


def _write_columns(
    folder: Path, rows: int, batches: Iterable[list[dict[str, np.ndarray]]], bfloat16: Collection[str]
) -> list[dict[str, Any]]:
    """The manifest's columns, their files written."""
    columns: dict[str, _ColumnWriter] = {}
    done = 0
    with ExitStack() as files:
        for batch in filter(None, batches):
            done += len(batch)
            names = batch[0].keys() if done == len(batch) else columns.keys()
            if done > rows or any(row.keys() != names for row in batch):
                raise ValueError(f"expected {rows} rows of {sorted(names)}, got others before row {done}")
            with _refusals():
                for number, name in enumerate(names):
                    arrays = [np.asarray(row[name]) for row in batch]
                    if name in bfloat16 and arrays[0].dtype != np.uint16:
                        raise TypeError(f"the bfloat16 of {name!r} must come as uint16 bits, not {arrays[0].dtype}")
                    if name not in columns:
                        columns[name] = _ColumnWriter(folder / str(number), name, arrays[0], files)
                    columns[name].append(arrays)
        if done != rows:
            raise ValueError(f"expected {rows} rows, got {done}")
        with _refusals():
            return [column.seal(name in bfloat16) for name, column in columns.items()]


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
            _sync(folder)
            return _attach(folder, key)
    raise NotWritten(f"{path} is in the way and cannot be removed")


@contextmanager
def _refusals() -> Iterator[None]:
    """The disk's refusals as NotWritten; only around our own work, never around the network's."""
    try:
        yield
    except (OSError, _DamageError) as error:
        raise NotWritten(str(error)) from error


def _manifest_text(entry: Mapping[str, Any]) -> bytes:
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(entry).encode())
    return json.dumps({"entry": entry, "xxh3_128": checksum}, indent=1).encode()


def _read_manifest(path: Path, check: bool) -> dict[str, Any]:
    """What was written of an entry, its files as they were then. Raises _DamageError."""
    try:
        text = (path / _MANIFEST).read_bytes()
        entry = json.loads(text)["entry"]
        # Byte by byte: nothing in it can have changed.
        if _manifest_text(entry) != text or path.name != entry["key"] + _SUFFIX or entry["format"] != _FORMAT:
            raise _DamageError("its manifest is not what was written")
        for column in entry["columns"]:
            for file in column["files"]:
                _check_file(path / file["name"], file["bytes"], file["xxh3_128"], check)
    except FileNotFoundError as error:
        raise _DamageError(f"{Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise _DamageError("its manifest cannot be read") from None
    return entry


def _check_file(path: Path, size: int, checksum: str, check: bool) -> None:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size != size:
            raise _DamageError(f"{path.name} has {status.st_size} bytes instead of {size}")
        if check and _identity(status, checksum) not in _CHECKED:
            if hashlib.file_digest(file, xxhash.xxh3_128).hexdigest() != checksum:
                raise _DamageError(f"{path.name} is not what was written")
            _CHECKED.add(_identity(status, checksum))


def _identity(status: os.stat_result, checksum: str) -> tuple[int, int, int, int, str]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, checksum


def _attach(folder: Path, key: str, check: bool = True) -> Activations:
    """An entry, mapped. Raises _DamageError."""
    path = _place(folder, key)
    entry = _read_manifest(path, check)
    dtypes, values, offsets = {}, {}, {}
    for column in entry["columns"]:
        name, files = column["name"], [path / file["name"] for file in column["files"]]
        dtypes[name] = column["dtype"]
        values[name] = _map(files[0], column["dtype"].replace("bfloat16", "uint16"), column["shape"])
        if len(files) > 1:
            offsets[name] = _map(files[1], "int64", [entry["rows"] + 1])
    # Its time is that of the last use; a store of others may be read-only.
    with suppress(OSError):
        os.utime(path / _MANIFEST)
    return Activations(folder, key, entry["rows"], _size_of(path), dtypes, values, offsets)


def _map(path: Path, dtype: str, shape: list[int]) -> np.ndarray:
    order = np.dtype(dtype).newbyteorder("<")
    # An empty file cannot be mapped.
    return np.zeros(shape, order) if 0 in shape else np.memmap(path, order, "r", shape=tuple(shape)).view(np.ndarray)


def _place(folder: Path, key: str) -> Path:
    if not _ENTRY.fullmatch(key + _SUFFIX):
        raise ValueError(f"the key {key!r} cannot name a folder: letters, digits, _ and - only, at most 128")
    return folder / (key + _SUFFIX)


def _folders(folder: Path) -> list[Path]:
    """The store's own folders, entries and temporary ones; others may lie beside them."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _ENTRY.fullmatch(p.name) or _TEMPORARY.fullmatch(p.name))


def _size_of(path: Path) -> int:
    total = 0
    for file in path.glob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _temporary(path: Path) -> Path:
    """A new name beside an entry: whose it is, and where."""
    return path.with_name(f".{path.stem}.{_host()}.{os.getpid()}.{secrets.token_hex(6)}.tmp")


@cache
def _host() -> str:
    """This machine since it started, and this container: where a process id means something."""
    facts = [platform.node()]
    with suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").stat().st_ino)]
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
    gone = path if _TEMPORARY.fullmatch(path.name) else _temporary(path)
    with suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _sync(path: Path) -> None:
    """Put a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
