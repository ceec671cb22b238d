"""`hf-transfer cache`: list or prune the cached activations."""

import argparse
import re
import time
from pathlib import Path
from typing import Any

from hf_transfer.errors import UserError

AGES = {"h": 3600, "d": 86_400, "w": 7 * 86_400}  # seconds
SIZES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}  # bytes


def add_parser(subparsers: Any) -> None:
    """Add the command `cache`."""
    parser = subparsers.add_parser("cache", help="list or prune the activations of frozen layers")
    parser.add_argument(
        "--cache_dir",
        "--cache-dir",
        help="folder of the cached activations (default: hf_transfer/frozen below HF_HOME)",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="remove leftovers and damaged entries, and what the flags below say",
    )
    parser.add_argument("--all", action="store_true", help="remove every entry")
    parser.add_argument(
        "--older_than",
        "--older-than",
        metavar="AGE",
        help="remove entries that were not used for 12h, 30d, 8w",
    )
    parser.add_argument(
        "--until_below",
        "--until-below",
        metavar="SIZE",
        help="remove the longest unused entries until the rest is below 500MB, 20GB",
    )
    parser.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print what would be freed, remove nothing",
    )
    parser.set_defaults(action=list_or_prune)


def list_or_prune(arguments: argparse.Namespace) -> None:
    """Print the entries of the store, or prune it and print how many bytes were freed."""
    from hf_transfer.store.entries import resolve_cache_dir

    folder = resolve_cache_dir(arguments.cache_dir)
    if arguments.prune:
        _prune(folder, arguments)
        return
    if arguments.all or arguments.older_than or arguments.until_below or arguments.dry_run:
        raise UserError(
            "--all, --older_than, --until_below and --dry_run say what --prune removes",
            "add --prune",
        )
    _list(folder)


def _prune(folder: Path, arguments: argparse.Namespace) -> None:
    from hf_transfer.store.entries import prune, show_bytes

    freed = prune(
        folder,
        older_than=_parse_quantity("--older_than", arguments.older_than, AGES),
        until_below=_parse_quantity("--until_below", arguments.until_below, SIZES),
        everything=arguments.all,
        dry_run=arguments.dry_run,
    )
    print(f"{'would free' if arguments.dry_run else 'freed'} {show_bytes(freed)} in {folder}")


def _list(folder: Path) -> None:
    """Print one line per entry: start of its key, size, rows, last use, what it is."""
    from hf_transfer.store.entries import list_entries, show_bytes

    entries = list_entries(folder)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        rows = "damaged" if entry.rows is None else f"{entry.rows} rows"
        about = " ".join(f"{name}={value}" for name, value in entry.about.items())
        size = show_bytes(entry.nbytes)
        print(f"{entry.key[:12]:12}  {size:>9}  {rows:>12}  {used}  {about}".rstrip())
    total = sum(entry.nbytes for entry in entries)
    print(f"{len(entries)} entries, {show_bytes(total)} in {folder}")


def _parse_quantity(flag: str, text: str | None, units: dict[str, int]) -> int | None:
    """`30d` -> seconds, `20GB` -> bytes."""
    if text is None:
        return None
    parts = re.fullmatch(r"(\d+)([A-Za-z]+)", text)
    if parts is None or parts[2] not in units:
        raise UserError(
            f"{flag} {text!r} is not understood",
            f"give a whole number and one of {', '.join(units)}",
        )
    return int(parts[1]) * units[parts[2]]
