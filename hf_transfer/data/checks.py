"""Rows that cannot be used, and digests of rows: pure functions of their stored content."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset, Image
from PIL import UnidentifiedImageError
from PIL.Image import DecompressionBombError
from tqdm.auto import tqdm

from hf_transfer.data.pixels import image_kind, read_image
from hf_transfer.errors import UserError, one_line

PROGRESS_BAR_ROWS = 5000  # checking fewer takes no time
MAX_BAD_PERCENT = 1  # of a split's rows; more are no accident
MAX_BAD_ROWS = 2  # that are left out of a split of any size
MISSING = {"image": "no image", "text": "no text", "text_pair": "no second text"}
READER = Image()

CheckLabel = Callable[[Any], str | None]  # stored label -> reason why it cannot be used, or None


@dataclass(frozen=True)
class CheckedRow:
    """What a row is found to be. A reason names no file, since it stands in the record.

    `image_kind` is that of data/pixels.py. `file` is the name of an image's file and its folder.
    """

    id: str
    reason: str | None = None  # why it cannot be used
    image_kind: str | None = None
    file: str | None = None


def check_split(
    name: str, split: Dataset, check_label: CheckLabel, skip: bool
) -> tuple[list[CheckedRow], Counter[str]]:
    """The rows of a split that cannot be used, in order, and the number of images by kind.

    Raises UserError if the bad rows are more than 1 % of the rows (two may always be left out), or,
    without `skip`, at the first.
    """
    bad: list[CheckedRow] = []
    kinds: Counter[str] = Counter()
    for row in check_rows(split, check_label):
        kinds.update(filter(None, [row.image_kind]))
        if row.reason:
            bad.append(row)
            if not skip:
                break
    other = f"for a split without labels name another --{name}_split"
    if bad and not skip:
        raise UserError(
            f"cannot use the row {summarize_bad(bad)}",
            f"fix or remove it, or give --on_bad_example skip; {other}",
        )
    percent = 100 * len(bad) / max(len(split), 1)
    if bad and (len(bad) == len(split) or (len(bad) > MAX_BAD_ROWS and percent > MAX_BAD_PERCENT)):
        raise UserError(
            f"{len(bad)} of {len(split)} rows of the split {name!r} ({percent:.3g} %) "
            f"cannot be used: {summarize_bad(bad)}",
            f"fix or remove them, no more than {MAX_BAD_PERCENT} % are left out; {other}",
        )
    return bad, kinds


def check_rows(split: Dataset, check_label: CheckLabel) -> Iterator[CheckedRow]:
    """What each row of a split is found to be, in order.

    Columns of the split: "id", "label" and inputs.
    """
    inputs = list(filter(MISSING.__contains__, split.column_names))
    quiet = len(split) < PROGRESS_BAR_ROWS
    for row in tqdm(_rows(split), total=len(split), desc="checking rows", disable=quiet):
        reason = check_label(row["label"])
        kind = file = None
        for column in inputs:
            value = row[column]
            if isinstance(value, dict):
                found, kind = _check_image(value)
                file = _file_name(value)
            else:
                found = None if isinstance(value, str) and value.strip() else MISSING[column]
            reason = reason or found
        yield CheckedRow(row["id"], reason, kind, file)


def summarize_bad(bad: Sequence[CheckedRow]) -> str:
    """The first three of the rows that cannot be used, each with its file and its reason."""
    shown = [f"{row.id}{f' {row.file}' if row.file else ''} ({row.reason})" for row in bad[:3]]
    return ", ".join([*shown, "..."] if len(bad) > 3 else shown)


def fingerprint(splits: dict[str, Dataset]) -> str:
    """Digest of the content of all rows, inputs and labels, in order, wherever they are stored."""
    digest = xxhash.xxh3_128()
    for name, split in sorted(splits.items()):
        digest.update(name.encode())
        for row in stored_rows(split):
            _add_row(digest, row)
    return digest.hexdigest()


def input_digests(split: Dataset) -> set[str]:
    """Digests of the different inputs of a split, without labels and ids."""
    inputs = [column for column in split.column_names if column in MISSING]
    digests = set()
    for row in stored_rows(split.select_columns(inputs)):
        digest = xxhash.xxh3_128()
        _add_row(digest, row)
        digests.add(digest.hexdigest())
    return digests


def _add_row(digest: xxhash.xxh3_128, row: Mapping[str, Any]) -> None:
    for column, value in sorted(row.items()):
        digest.update(f"\0{column}\0".encode())
        digest.update(value if isinstance(value, bytes) else str(value).encode())


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


def _file_name(image: dict[str, Any]) -> str | None:
    """The name of an image's file and of its folder: no more of a path."""
    return "/".join(Path(image["path"]).parts[-2:]) if image["path"] else None


def _check_image(image: dict[str, Any]) -> tuple[str | None, str | None]:
    """Reason why an image, as stored, cannot be used, or None; and its kind in data/pixels.py."""
    if image["bytes"] is None and image["path"] is None:
        return MISSING["image"], None
    try:
        content = _content(image)
    except FileNotFoundError:
        return "the image's file is missing", None
    except OSError as error:
        # The complete text of the error would name the path.
        return f"the image's file cannot be read: {error.strerror}", None
    if not content:
        return "the image's file is empty", None
    try:
        decoded = READER.decode_example({"bytes": content, "path": None})
        kind = image_kind(decoded)
        if kind:
            read_image(decoded)
    except UnidentifiedImageError:
        # The text of the error holds an address in memory, which differs between processes.
        return "the image cannot be read: its format is not known", None
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        return f"the image cannot be read: {one_line(error)}", None
    return None, kind
