"""The files of one entry of the store: a flat file of values a name, rows one after the other along their first axis;
a file of offsets where lengths differ; `manifest.json`, written last, with the size and checksum of every file.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

FORMAT = 1
MANIFEST = "manifest.json"

# Files whose content this process has written or checked: device, inode, size, time of change, checksum.
_CHECKED: set[tuple[int, int, int, int, str]] = set()


class NotWritten(Exception):  # noqa: N818 - what happened, not what is wrong
    """The store could not take what was given (disk full, no permission); nothing of it is left behind."""


class DamageError(Exception):
    """An entry is not what was written; the text says what is wrong."""


def write_entry(
    folder: Path,
    key: str,
    rows: int,
    batches: Iterable[list[dict[str, np.ndarray]]],
    about: Mapping[str, Any],
    bfloat16: Collection[str],
) -> None:
    """Fill a folder with the rows and, last, their manifest, and put all on the disk. Raises NotWritten."""
    columns = _write_columns(folder, rows, batches, bfloat16)
    with refusals():
        entry = {"format": FORMAT, "key": key, "rows": rows, "columns": columns, "about": about}
        (folder / MANIFEST).write_bytes(_manifest_text(entry))
        sync(folder / MANIFEST)
        sync(folder)


@contextmanager
def refusals() -> Iterator[None]:
    """The disk's refusals as NotWritten; only around our own work, never around the network's."""
    try:
        yield
    except (OSError, DamageError) as error:
        raise NotWritten(str(error)) from error


def _manifest_text(entry: Mapping[str, Any]) -> bytes:
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(entry).encode())
    return json.dumps({"entry": entry, "xxh3_128": checksum}, indent=1).encode()


def read_manifest(path: Path, check: bool) -> dict[str, Any]:
    """What was written of an entry, its files as they were then. Raises DamageError."""
    try:
        text = (path / MANIFEST).read_bytes()
        entry = json.loads(text)["entry"]
        # Byte by byte: nothing in it can have changed.
        if _manifest_text(entry) != text or path.stem != entry["key"] or entry["format"] != FORMAT:
            raise DamageError("its manifest is not what was written")
        for column in entry["columns"]:
            for file in column["files"]:
                _check_file(path / file["name"], file["bytes"], file["xxh3_128"], check)
    except FileNotFoundError as error:
        raise DamageError(f"{Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise DamageError("its manifest cannot be read") from None
    return entry


def _check_file(path: Path, size: int, checksum: str, check: bool) -> None:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size != size:
            raise DamageError(f"{path.name} has {status.st_size} bytes instead of {size}")
        if check and _identity(status, checksum) not in _CHECKED:
            if hashlib.file_digest(file, xxhash.xxh3_128).hexdigest() != checksum:
                raise DamageError(f"{path.name} is not what was written")
            _CHECKED.add(_identity(status, checksum))


def _identity(status: os.stat_result, checksum: str) -> tuple[int, int, int, int, str]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, checksum


def map_file(path: Path, dtype: str, shape: list[int]) -> np.ndarray:
    order = np.dtype(dtype).newbyteorder("<")
    # An empty file cannot be mapped.
    return (
        np.zeros(shape, order)
        if 0 in shape
        else np.memmap(path, order, "r", shape=tuple(shape)).view(np.ndarray)
    )


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
        """Write the arrays of some rows; ValueError if one is not like the first."""
        for array in arrays:
            if (
                array.dtype != self.dtype
                or array.ndim != len(self.shape)
                or array.shape[1:] != self.shape[1:]
            ):
                was, now = f"{self.dtype} {self.shape}", f"{array.dtype} {array.shape}"
                raise ValueError(
                    f"{self.name!r} was {was}, now {now}: only the first axis may vary"
                )
        lengths = [len(array) if self.shape else 1 for array in arrays]
        self.lengths = {*sorted({*self.lengths, *lengths})[:2]}
        ends = self.total + np.cumsum(lengths, dtype=np.int64)
        self.rows, self.total = self.rows + len(arrays), int(ends[-1])
        self._write(0, np.concatenate(arrays) if self.shape else np.stack(arrays))
        self._write(1, ends)

    def _write(self, number: int, array: np.ndarray) -> None:
        data = (
            array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            .reshape(-1)
            .view(np.uint8)
            .data
        )
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
    folder: Path,
    rows: int,
    batches: Iterable[list[dict[str, np.ndarray]]],
    bfloat16: Collection[str],
) -> list[dict[str, Any]]:
    """The manifest's columns, their files written."""
    columns: dict[str, _ColumnWriter] = {}
    done = 0
    with ExitStack() as files:
        for batch in filter(None, batches):
            done += len(batch)
            names = batch[0].keys() if done == len(batch) else columns.keys()
            if done > rows or any(row.keys() != names for row in batch):
                raise ValueError(
                    f"expected {rows} rows of {sorted(names)}, got others before row {done}"
                )
            with refusals():
                for number, name in enumerate(names):
                    arrays = [np.asarray(row[name]) for row in batch]
                    if name in bfloat16 and arrays[0].dtype != np.uint16:
                        raise TypeError(
                            f"the bfloat16 of {name!r} must come as uint16 bits, not {arrays[0].dtype}"
                        )
                    if name not in columns:
                        columns[name] = _ColumnWriter(folder / str(number), name, arrays[0], files)
                    columns[name].append(arrays)
        if done != rows:
            raise ValueError(f"expected {rows} rows, got {done}")
        with refusals():
            return [column.seal(name in bfloat16) for name, column in columns.items()]


def sync(path: Path) -> None:
    """Put a file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
