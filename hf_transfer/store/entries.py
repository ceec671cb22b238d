"""The entries of the store as folders: where they are, how large, which were used last.

An entry is a sealed folder `<key>.activations` in the cache directory. It appears complete, by a
rename, or not at all.
"""

import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_transfer.sealed import (
    MANIFEST,
    Check,
    DamageError,
    is_abandoned,
    is_temporary,
    read_manifest,
    temporary_path,
)

_SUFFIX = ".activations"
_ENTRY = re.compile(r"[\w-]{1,128}\.activations", re.ASCII)
_FREE_FOR_OTHERS = 10**9  # bytes of the disk that are left alone


@dataclass(frozen=True)
class Entry:
    """A line of the list: `rows` is None for damaged entries; `last_used` is in Unix seconds."""

    key: str
    nbytes: int
    rows: int | None
    last_used: float
    about: Mapping[str, Any]


def resolve_cache_dir(cache_dir: str | None) -> Path:
    """The directory of the store: the given one, else <HF_HOME>/hf_transfer/frozen."""
    if cache_dir:
        return Path(cache_dir).expanduser().absolute()
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_transfer" / "frozen"


def entry_path(cache_dir: Path, key: str) -> Path:
    """The folder of an entry. Raises ValueError if the key cannot be part of its name."""
    if not _ENTRY.fullmatch(key + _SUFFIX):
        rule = "letters, digits, _ and - only, at most 128"
        raise ValueError(f"the key {key!r} cannot name a folder: {rule}")
    return cache_dir / (key + _SUFFIX)


def read_entry(path: Path, check: Check) -> dict[str, Any]:
    """The manifest of an entry: key, rows, columns and about. Raises DamageError and OSError."""
    entry = read_manifest(path, _files_of_columns, check)
    if entry["key"] != path.stem:
        raise DamageError(f"it is the entry of another key, {entry['key']}")
    return entry


def _files_of_columns(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [file for column in entry["columns"] for file in column["files"]]


def list_entries(cache_dir: Path) -> list[Entry]:
    """The entries of the store, the last used first; only sizes and manifests are read."""
    entries = []
    for path in list_folders(cache_dir):
        # Another process may remove it meanwhile.
        with suppress(FileNotFoundError):
            if path.suffix == _SUFFIX:
                last_used = next(path.glob(MANIFEST), path).stat().st_mtime
                facts: dict[str, Any] = {"rows": None, "about": {}}
                with suppress(DamageError):
                    facts = read_entry(path, "sizes")
                entries.append(
                    Entry(path.stem, folder_size(path), facts["rows"], last_used, facts["about"])
                )
    return sorted(entries, key=lambda entry: -entry.last_used)


def prune(
    cache_dir: Path,
    *,
    older_than: float | None = None,
    until_below: int | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> int:
    """Remove entries and return the bytes freed, or with `dry_run` those that would be.

    Leftovers of killed processes and damaged entries are removed in any case. A process that has an
    entry open keeps its content.

    Args:
        older_than: Remove entries not used for this many seconds.
        until_below: Remove the longest unused ones until the others take fewer bytes.
        everything: Remove all entries.
    """
    removed = list(filter(is_abandoned, list_folders(cache_dir)))
    left = 0
    for entry in list_entries(cache_dir):
        old = older_than is not None and time.time() - entry.last_used > older_than
        beyond = until_below is not None and left + entry.nbytes >= until_below
        if everything or old or beyond or entry.rows is None:
            removed.append(entry_path(cache_dir, entry.key))
        else:
            left += entry.nbytes
    freed = sum(map(folder_size, removed))
    for path in removed if not dry_run else []:
        remove_entry(path)
    return freed


def remove_entry(path: Path) -> None:
    """Remove a folder of the store: it vanishes at once, then its files are freed."""
    renamed = path if is_temporary(path) else temporary_path(path)
    with suppress(FileNotFoundError):
        path.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def room_for(cache_dir: Path, needed: int, limit_gb: float) -> str | None:
    """None if `needed` more bytes fit into the store, else the reason; a GB is 10^9 bytes."""
    used = sum(map(folder_size, list_folders(cache_dir)))
    if used + needed > limit_gb * 1e9:
        there = f" beside the {show_bytes(used)} already there" if used else ""
        return f"{show_bytes(needed)}{there} are more than --cache_limit_gb {limit_gb:g}"
    existing = next(filter(Path.exists, (cache_dir, *cache_dir.absolute().parents)))
    free = shutil.disk_usage(existing).free
    if needed + _FREE_FOR_OTHERS <= free:
        return None
    disk = f"a disk with {show_bytes(free)} free at {existing}"
    return f"{show_bytes(needed)} are too much for {disk}"


def folder_size(path: Path) -> int:
    """Bytes of the files in a folder."""
    total = 0
    for file in path.glob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def show_bytes(number: int) -> str:
    """The number as people read it, in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def list_folders(cache_dir: Path) -> list[Path]:
    """The folders of the store, entries and temporary ones; other files may be beside them."""
    if not cache_dir.is_dir():
        return []
    return sorted(p for p in cache_dir.iterdir() if _ENTRY.fullmatch(p.name) or is_temporary(p))
