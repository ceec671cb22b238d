"""Rows to store, and second processes that store rows."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.store.activations import Activations, write_activations

Rows = list[dict[str, np.ndarray]]

# What second processes run: write(cache_dir, key, batches, pause) stores rows of 4,000 numbers, eight per batch.
CHILD = """
import os, resource, sys, time
import numpy as np
from pathlib import Path
from hf_transfer.sealed import NotWrittenError
from hf_transfer.store.activations import digest, open_activations, write_activations

def batches(count, pause=0.0, width=4000):
    for batch in range(count):
        time.sleep(pause)
        yield [{"x": np.full(width, 8 * batch + n, np.float32), "y": np.zeros((n % 3, 2))} for n in range(8)]

def write(cache_dir, key, count, pause=0.0):
    return write_activations(Path(cache_dir), key, 8 * count, batches(count, pause), {"by": os.getpid()})
"""


def start(code: str, *words: object) -> subprocess.Popen[str]:
    """A second process."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    """The output of a second process, once it has ended without an error."""
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return out.strip()


def two_by_two(rows: Rows) -> Iterator[Rows]:
    """The rows in batches of two."""
    yield from (rows[start : start + 2] for start in range(0, len(rows), 2))


def make_rows(count: int = 7) -> Rows:
    """Rows with an array of one shape, a ragged array that may be empty, and a number."""
    rng = np.random.default_rng(0)
    return [
        {
            "fixed": rng.standard_normal((3, 2)).astype(np.float32),
            "ragged": rng.standard_normal((n % 4, 5)).astype(np.float16),
            "number": np.asarray(n),
        }
        for n in range(count)
    ]


def store(cache_dir: Path, key: str = "key", rows: Rows | None = None, **about: Any) -> Path:
    """The folder of an entry that was just written."""
    rows = make_rows() if rows is None else rows
    write_activations(cache_dir, key, len(rows), two_by_two(rows), about)
    return cache_dir / f"{key}.activations"


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(file.name for file in folder.iterdir())


def assert_same(activations: Activations | None, rows: Rows) -> None:
    """Compare what was stored with the rows, to the bit."""
    assert activations is not None
    assert len(activations) == len(rows)
    for row, expected in zip(activations, rows, strict=True):  # type: ignore[call-overload]
        assert row.keys() == expected.keys()
        for name, array in expected.items():
            assert row[name].dtype == array.dtype
            np.testing.assert_array_equal(row[name], array, strict=True)
