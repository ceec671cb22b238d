"""Rows that cannot be used, and digests of rows: pure functions of their stored content."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset, Image
from PIL import UnidentifiedImageError
from PIL.Image import DecompressionBombError
from tqdm.auto import tqdm

from hf_transfer.errors import UserError, one_line

PROGRESS_BAR_ROWS = 5000  # checking fewer takes no time
MAX_BAD_PERCENT = 1  # of a split's rows; more are no accident
MISSING = {"image": "no image", "text": "no text", "text_pair": "no second text"}
READER = Image()

CheckLabel = Callable[[Any], str | None]  # stored label -> reason why it cannot be used, or None


def find_bad(name: str, split: Dataset, check_label: CheckLabel, skip: bool) -> dict[str, str]:
    """Id -> reason of each row of a split that cannot be used, in order.

    Raises UserError if these are more than 1 % of the rows, or, without `skip`, at the first.
    """
    found = bad_rows(split, check_label)
    bad = dict(found if skip else itertools.islice(found, 1))
    other = f"for a split without labels name another --{name}_split"
    if bad and not skip:
        raise UserError(
            f"cannot use the row {summarize_bad(bad)}",
            f"fix or remove it, or give --on_bad_example skip; {other}",
        )
    percent = 100 * len(bad) / max(len(split), 1)
    if percent > MAX_BAD_PERCENT:
        raise UserError(
            f"{len(bad)} of {len(split)} rows of the split {name!r} ({percent:.3g} %) "
            f"cannot be used: {summarize_bad(bad)}",
            f"fix or remove them, no more than {MAX_BAD_PERCENT} % are left out; {other}",
        )
    return bad


def bad_rows(split: Dataset, check_label: CheckLabel) -> Iterator[tuple[str, str]]:
    """Id and reason of each row that cannot be used, in order; no reason holds a path.

    Columns of the split: "id", "label" and inputs.
    """
    inputs = list(filter(MISSING.__contains__, split.column_names))
    quiet = len(split) < PROGRESS_BAR_ROWS
    for row in tqdm(_rows(split), total=len(split), desc="checking rows", disable=quiet):
        reasons = (_check_input(column, row[column]) for column in inputs)
        reason = check_label(row["label"]) or next(filter(None, reasons), None)
        if reason:
            yield row["id"], reason


def summarize_bad(bad: dict[str, str]) -> str:
    """The first three of the rows that cannot be used, each with its reason."""
    shown = ", ".join(f"{row} ({reason})" for row, reason in itertools.islice(bad.items(), 3))
    return shown if len(bad) <= 3 else f"{shown}, ..."


def fingerprint(splits: dict[str, Dataset]) -> str:
    """Digest of the content of all rows, inputs and labels, in order, wherever they are stored."""
    digest = xxhash.xxh3_128()
    for name, split in sorted(splits.items()):
        digest.update(name.encode())
        for row in stored_rows(split):
            for column, value in sorted(row.items()):
                digest.update(f"\0{column}\0".encode())
                digest.update(value if isinstance(value, bytes) else str(value).encode())
    return digest.hexdigest()


def content_digest(split: Dataset, columns: list[str]) -> str:
    """Digest of some columns of a split, row by row, in order."""
    digest = xxhash.xxh3_128()
    for row in stored_rows(split.select_columns(columns)):
        for column in columns:
            value = row[column]
            content = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(f"{column}:{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()


def stored_rows(split: Dataset) -> Iterator[dict[str, Any]]:
    """Rows as stored: an image is the bytes of its file, not decoded."""
    for row in _rows(split):
        yield {
            column: _content(value) if isinstance(value, dict) else value
            for column, value in row.items()
        }


def _rows(split: Dataset) -> Iterator[dict[str, Any]]:
    """Rows as stored: an image is a dict with the bytes, or else the path, of its file."""
    for table in split.with_format("arrow").iter(1000):
        yield from table.to_pylist()


def _content(image: dict[str, Any]) -> bytes:
    return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]


def _check_input(column: str, value: str | dict[str, Any] | None) -> str | None:
    """Reason why a text or an image, as stored, cannot be used; None if it can."""
    if isinstance(value, str):
        return None if value.strip() else MISSING[column]
    if value is None or value == {"bytes": None, "path": None}:
        return MISSING[column]
    try:
        content = _content(value)
    except FileNotFoundError:
        return "the image's file is missing"
    except OSError as error:
        # The complete text of the error would name the path.
        return f"the image's file cannot be read: {error.strerror}"
    return _check_image(content) if content else "the image's file is empty"


def _check_image(content: bytes) -> str | None:
    """Reason why the bytes of an image's file cannot be used; None if training can read them."""
    try:
        READER.decode_example({"bytes": content, "path": None})
    except UnidentifiedImageError:
        # The text of the error holds an address in memory, which differs between processes.
        return "the image cannot be read: its format is not known"
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        return f"the image cannot be read: {one_line(error)}"
    return None
