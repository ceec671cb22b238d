"""The columns of an entry as flat files.

A column has a file of values, rows one after the other along their first axis, and, if the rows
differ in length, a file of offsets.
"""

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.sealed import SealedFile, report_disk_errors


class _ColumnWriter:
    """The files of one column: values, and offsets. All rows must be like the first."""

    def __init__(self, path: Path, name: str, first: np.ndarray, files: ExitStack) -> None:
        if first.dtype.kind not in "biuf" or first.dtype.itemsize > 8:
            raise TypeError(f"{name!r} cannot be stored: {first.dtype}")
        self.name = name
        self.first = first
        self.common = (first.dtype, first.ndim, first.shape[1:])
        self.lengths: set[int] = set()
        self.rows = 0
        self.total = 0
        self.values = files.enter_context(SealedFile(path.with_suffix(".values")))
        # Offsets are written from the start, as memory must not grow with the rows; where all rows
        # have one length, the file is removed at the end.
        self.offsets = files.enter_context(SealedFile(path.with_suffix(".offsets")))
        self.offsets.write(_as_bytes(np.zeros(1, np.int64)))

    def append(self, arrays: list[np.ndarray]) -> None:
        """Write the arrays of some rows. Raises ValueError if one is not like the first."""
        for array in arrays:
            if (array.dtype, array.ndim, array.shape[1:]) != self.common:
                raise ValueError(
                    f"{self.name!r} was {self.first.dtype} {self.first.shape}, "
                    f"now {array.dtype} {array.shape}: only the first axis may vary"
                )
        has_axis = self.first.ndim > 0
        lengths = list(map(len, arrays)) if has_axis else [1] * len(arrays)
        self.lengths = {*sorted({*self.lengths, *lengths})[:2]}  # two tell that they differ
        ends = self.total + np.cumsum(lengths, dtype=np.int64)
        self.rows += len(arrays)
        self.total = int(ends[-1])
        self.values.write(_as_bytes(np.concatenate(arrays) if has_axis else np.stack(arrays)))
        self.offsets.write(_as_bytes(ends))

    def seal(self, is_bfloat16: bool) -> dict[str, Any]:
        """The column's part of the manifest, once its files are on the disk."""
        files = [self.values.seal()]
        shape = [self.rows, *self.first.shape]
        if len(self.lengths) > 1:
            files.append(self.offsets.seal())
            shape = [self.total, *self.first.shape[1:]]
        else:
            self.offsets.close()  # Windows removes no open files
            self.offsets.path.unlink()
        dtype = "bfloat16" if is_bfloat16 else self.first.dtype.name
        return {"name": self.name, "dtype": dtype, "shape": shape, "files": files}


def write_columns(
    folder: Path,
    rows: int,
    batches: Iterable[list[dict[str, np.ndarray]]],
    bfloat16: Collection[str],
) -> list[dict[str, Any]]:
    """Write the columns of all batches and return their parts of the manifest.

    Raises NotWrittenError, ValueError and TypeError as `write_activations` does.
    """
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
            with report_disk_errors(folder.parent):
                for number, name in enumerate(names):
                    arrays = [np.asarray(row[name]) for row in batch]
                    dtype = arrays[0].dtype
                    if name in bfloat16 and dtype != np.uint16:
                        raise TypeError(
                            f"the bfloat16 of {name!r} must come as uint16 bits, not {dtype}"
                        )
                    if name not in columns:
                        columns[name] = _ColumnWriter(folder / str(number), name, arrays[0], files)
                    columns[name].append(arrays)
        if done != rows:
            raise ValueError(f"expected {rows} rows, got {done}")
        with report_disk_errors(folder.parent):
            return [column.seal(name in bfloat16) for name, column in columns.items()]


def map_file(path: Path, dtype: str, shape: list[int]) -> np.ndarray:
    """A file of values or offsets, memory-mapped; an empty one, which cannot be, as zeros."""
    little_endian = np.dtype(dtype).newbyteorder("<")
    if 0 in shape:
        return np.zeros(shape, little_endian)
    return np.memmap(path, little_endian, "r", shape=tuple(shape)).view(np.ndarray)


def _as_bytes(array: np.ndarray) -> memoryview:
    """The content in C order, little-endian."""
    ordered = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return ordered.reshape(-1).view(np.uint8).data
