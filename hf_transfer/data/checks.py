"""What is wrong with the rows of a dataset, and what they are: pure functions of their stored content."""

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

WORTH_A_BAR = 5000  # rows
MOST_BAD = 1  # per cent of a split's rows; more are no accident
MISSING = {"image": "no picture", "text": "no text", "text_pair": "no second text"}
READER = Image()


def find_bad(
    name: str, split: Dataset, label_flaw: Callable[[Any], str | None], skip: bool
) -> dict[str, str]:
    """The reason by id of each row of a split that cannot be used, in order.

    Raises UserError if more than 1 % of the rows are such, or, without `skip`, at the first.
    """
    found = bad_rows(split, label_flaw)
    bad = dict(found if skip else itertools.islice(found, 1))
    other = f"for a split without labels name another --{name}_split"
    if bad and not skip:
        raise UserError(
            f"cannot use the row {first_of(bad)}",
            f"mend or remove it, or give --on_bad_example skip; {other}",
        )
    if 100 * len(bad) > MOST_BAD * len(split):
        raise UserError(
            f"{len(bad)} of {len(split)} rows of the split {name!r} ({100 * len(bad) / len(split):.3g} %) cannot be "
            f"used: {first_of(bad)}",
            f"mend or remove them, no more than {MOST_BAD} % are left out; {other}",
        )
    return bad


def bad_rows(split: Dataset, label_flaw: Callable[[Any], str | None]) -> Iterator[tuple[str, str]]:
    """The id of each row that cannot be used, and why, in order; no reason holds a path.

    Columns: "id", "label", of which `label_flaw` says what is wrong with a value, and inputs.
    """
    inputs = [column for column in split.column_names if column in MISSING]
    for row in tqdm(
        _rows(split), total=len(split), desc="checking rows", disable=len(split) < WORTH_A_BAR
    ):
        flaws = itertools.chain(
            [label_flaw(row["label"])], (_input_flaw(column, row[column]) for column in inputs)
        )
        reason = next(filter(None, flaws), None)
        if reason:
            yield row["id"], reason


def first_of(bad: dict[str, str]) -> str:
    """The first three rows of those that cannot be used, each with the reason."""
    shown = ", ".join(f"{row} ({reason})" for row, reason in itertools.islice(bad.items(), 3))
    return shown if len(bad) <= 3 else f"{shown}, ..."


def fingerprint(splits: dict[str, Dataset]) -> str:
    """A digest of every row's content, inputs and labels, in order: the same wherever the data lie."""
    digest = xxhash.xxh3_128()
    for name, split in sorted(splits.items()):
        digest.update(name.encode())
        for row in stored_rows(split):
            for column, value in sorted(row.items()):
                digest.update(f"\0{column}\0".encode())
                digest.update(value if isinstance(value, bytes) else str(value).encode())
    return digest.hexdigest()


def content_digest(split: Dataset, columns: list[str]) -> str:
    """A digest of some columns of a split, row by row, in order."""
    digest = xxhash.xxh3_128()
    for row in stored_rows(split.select_columns(columns)):
        for column in columns:
            value = row[column]
            content = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(f"{column}:{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()


def stored_rows(split: Dataset) -> Iterator[dict[str, Any]]:
    """The rows as they are stored: pictures as the bytes of their files, not decoded."""
    for row in _rows(split):
        yield {
            column: _content(value) if isinstance(value, dict) else value
            for column, value in row.items()
        }


def _rows(split: Dataset) -> Iterator[dict[str, Any]]:
    """The rows as they are stored: pictures as the bytes, or else the path, of their files."""
    for table in split.with_format("arrow").iter(1000):
        yield from table.to_pylist()


def _content(picture: dict[str, Any]) -> bytes:
    return Path(picture["path"]).read_bytes() if picture["bytes"] is None else picture["bytes"]


def _input_flaw(column: str, value: str | dict[str, Any] | None) -> str | None:
    """What is wrong with a text or a picture as it is stored, or None."""
    if isinstance(value, str):
        return None if value.strip() else MISSING[column]
    if value is None or value == {"bytes": None, "path": None}:
        return MISSING[column]
    try:
        content = _content(value)
    except FileNotFoundError:
        return "the picture's file is missing"
    except OSError as error:
        return f"the picture's file cannot be read: {error.strerror}"  # all of its text would name the path
    return _picture_flaw(content) if content else "the picture's file is empty"


def _picture_flaw(content: bytes) -> str | None:
    """What is wrong with the bytes of a picture's file, or None: they are read as training reads them."""
    try:
        READER.decode_example({"bytes": content, "path": None})
    except (
        UnidentifiedImageError
    ):  # its own text has an address in memory, another one in every process
        return "the picture cannot be read: its format is not known"
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        return f"the picture cannot be read: {one_line(error)}"
    return None
