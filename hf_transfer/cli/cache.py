"""`hf-transfer cache`: list or prune the cached activations."""

import argparse
import re
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

from hf_transfer.cli.command import output_may_end
from hf_transfer.errors import UserError

AGES = {"h": 3600, "d": 86_400, "w": 7 * 86_400}  # seconds
SIZES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}  # bytes
FLAGS = (  # name, metavar of its value, help
    (
        "--cache_dir",
        "CACHE_DIR",
        "folder of the cached activations (default: hf_transfer/frozen below HF_HOME)",
    ),
    ("--prune", "", "remove leftovers and damaged entries, and what the flags below say"),
    ("--all", "", "remove every entry"),
    ("--older_than", "AGE", "remove entries that were not used for 12h, 30d, 8w"),
    (
        "--until_below",
        "SIZE",
        "remove the longest unused entries until the rest is below 500MB, 20GB",
    ),
    ("--dry_run", "", "print what would be freed, remove nothing"),
)


def add_parser(subparsers: Any) -> None:
    """Add the command `cache`."""
    parser = subparsers.add_parser("cache", help="list or prune the activations of frozen layers")
    for flag, metavar, text in FLAGS:
        spellings = dict.fromkeys((flag, f"--{flag[2:].replace('_', '-')}"))
        kind = {"metavar": metavar} if metavar else {"action": "store_true"}
        parser.add_argument(*spellings, help=text, **kind)
    parser.set_defaults(action=list_or_prune)


def list_or_prune(arguments: argparse.Namespace) -> None:
    """Print the entries of the store, or prune it and print how many bytes were freed."""
    from hf_transfer.store.entries import prune, resolve_cache_dir, show_bytes

    folder = resolve_cache_dir(arguments.cache_dir)
    if arguments.cache_dir and not folder.is_dir():
        raise UserError(f"--cache_dir {arguments.cache_dir} is no folder", "check the path")
    if arguments.prune:
        freed = prune(
            folder,
            older_than=_parse_quantity("--older_than", arguments.older_than, AGES),
            until_below=_parse_quantity("--until_below", arguments.until_below, SIZES),
            everything=arguments.all,
            dry_run=arguments.dry_run,
        )
        print(f"{'would free' if arguments.dry_run else 'freed'} {show_bytes(freed)} in {folder}")
    elif arguments.all or arguments.older_than or arguments.until_below or arguments.dry_run:
        raise UserError(
            "--all, --older_than, --until_below and --dry_run say what --prune removes",
            "add --prune",
        )
    else:
        with output_may_end():
            _list(folder)


def _list(folder: Path) -> None:
    """Print one line per entry: start of its key, size, rows, last use, what it is."""
    from hf_transfer.store.entries import list_entries, show_bytes

    entries = list_entries(folder)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        rows = "damaged" if entry.rows is None else f"{entry.rows} rows"
        about = " ".join(map("{}={}".format, entry.about, entry.about.values()))
        size = show_bytes(entry.nbytes)
        print(f"{entry.key[:12]:12}  {size:>9}  {rows:>12}  {used}  {about}".rstrip())
    total = sum(map(attrgetter("nbytes"), entries))
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
