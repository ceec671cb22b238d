"""Rows that cannot be used, and digests of rows: pure functions of their stored content."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset
from tqdm.auto import tqdm

from hf_transfer.data.groups import GROUP, NO_GROUP
from hf_transfer.data.pixels import image_bytes
from hf_transfer.data.token_labels import check_words
from hf_transfer.errors import UserError

PROGRESS_BAR_ROWS = 5000  # checking fewer takes no time
MAX_BAD_PERCENT = 1  # of a split's rows; more are no accident
MAX_BAD_ROWS = 2  # that are left out of a split of any size
TEXTS = {"text": "no text", "text_pair": "no second text"}  # column -> reason of an empty one
DIGEST = "digest"  # column: that of the image's file, in hex

# Of each file: why it cannot be used, or None; an image's kind in data/pixels.py, or None.
FileFacts = Sequence[tuple[str | None, str | None]]
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
    name: str, split: Dataset, check_label: CheckLabel | None, skip: bool, files: FileFacts = ()
) -> tuple[list[CheckedRow], Counter[str]]:
    """The rows of a split that cannot be used, in order, and the number of images by kind.

    Raises UserError if the bad rows are more than 1 % of the rows (two may always be left out), or,
    without `skip`, at the first.
    """
    bad: list[CheckedRow] = []
    kinds: Counter[str] = Counter()
    for row in check_rows(split, check_label, files):
        kinds.update(filter(None, [row.image_kind]))
        if row.reason:
            bad.append(row)
            if not skip:
                break
    other = f"; for a split without labels name another --{name}_split" if check_label else ""
    if bad and not skip:
        raise UserError(
            f"cannot use the row {summarize_bad(bad)}",
            f"fix or remove it, or give --on_bad_example skip{other}",
        )
    percent = 100 * len(bad) / max(len(split), 1)
    if bad and (len(bad) == len(split) or (len(bad) > MAX_BAD_ROWS and percent > MAX_BAD_PERCENT)):
        raise UserError(
            f"{len(bad)} of {len(split)} rows of the split {name!r} ({percent:.3g} %) "
            f"cannot be used: {summarize_bad(bad)}",
            f"fix or remove them, no more than {MAX_BAD_PERCENT} % are left out{other}",
        )
    return bad, kinds


def check_rows(
    split: Dataset, check_label: CheckLabel | None, files: FileFacts = ()
) -> Iterator[CheckedRow]:
    """What each row of a split is found to be, in order.

    Columns of the split: "id", "label" and inputs. `files` is what data/prepared.py or
    data/sounds.py found. Without `check_label` any label will do.
    """
    texts = [column for column in TEXTS if column in split.column_names]
    groups = [GROUP] if GROUP in split.column_names else []
    light = split.select_columns(["id", "label", *texts, *groups])
    quiet = len(split) < PROGRESS_BAR_ROWS
    rows = tqdm(stored_rows(light), total=len(split), desc="checking rows", disable=quiet)
    for number, row in enumerate(rows):
        reason = check_label(row["label"]) if check_label else None
        kind = file = None
        for column in texts:
            reason = reason or _check_text(column, row)
        if groups and row[GROUP] is None:
            reason = reason or NO_GROUP
        if files:
            found, kind = files[number]
            reason = reason or found
            file = _file_name(split, number) if reason else None
        yield CheckedRow(row["id"], reason, kind, file)


def _check_text(column: str, row: Mapping[str, Any]) -> str | None:
    """Reason why a text, or a list of words, cannot be used; None if it can."""
    value = row[column]
    if isinstance(value, list):
        return check_words(value, row["label"])
    return None if (value or "").strip() else TEXTS[column]


def summarize_bad(bad: Sequence[CheckedRow]) -> str:
    """The first three of the rows that cannot be used, each with its file and its reason."""
    shown = [f"{row.id}{f' {row.file}' if row.file else ''} ({row.reason})" for row in bad[:3]]
    return ", ".join([*shown, "..."] if len(bad) > 3 else shown)


def fingerprint(splits: dict[str, Dataset]) -> str:
    """Digest of the content of all rows, inputs and labels, in order, wherever they are stored."""
    digest = xxhash.xxh3_128()
    for name, split in sorted(splits.items()):
        digest.update(name.encode())
        for row in stored_rows(split.select_columns(["id", "label", *input_columns(split)])):
            _add_row(digest, row)
    return digest.hexdigest()


def input_columns(split: Dataset) -> list[str]:
    """The columns that tell which inputs a split has: that of digests stands for its images."""
    names = [DIGEST] if DIGEST in split.column_names else ["image", "audio", *TEXTS]
    return [name for name in names if name in split.column_names]


def input_digests(split: Dataset) -> set[str]:
    """Digests of the different inputs of a split, without labels and ids."""
    digests = set()
    for row in stored_rows(split.select_columns(input_columns(split))):
        digest = xxhash.xxh3_128()
        _add_row(digest, row)
        digests.add(digest.hexdigest())
    return digests


def _add_row(digest: xxhash.xxh3_128, row: Mapping[str, Any]) -> None:
    for column, value in sorted(row.items()):
        digest.update(f"\0{column}\0".encode())
        digest.update(_content(value))


def content_digest(split: Dataset, columns: list[str]) -> str:
    """Digest of some columns of a split, row by row, in order."""
    digest = xxhash.xxh3_128()
    for row in stored_rows(split.select_columns(columns)):
        for column in columns:
            content = _content(row[column])
            digest.update(f"{column}:{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()


def _content(value: Any) -> bytes:
    """A value as bytes; of an image, those of its file."""
    if isinstance(value, dict):
        return image_bytes(value)
    return value if isinstance(value, bytes) else repr(value).encode()


def stored_rows(split: Dataset) -> Iterator[dict[str, Any]]:
    """Rows as stored: an image is a dict with the bytes, or else the path, of its file."""
    for table in split.with_format("arrow").iter(1000):
        yield from table.to_pylist()


def _file_name(split: Dataset, row: int) -> str | None:
    """The name of an input's file and of its folder: no more of a path."""
    column = "image" if "image" in split.column_names else "audio"
    file = split.with_format("arrow")[row][column][0].as_py()
    return "/".join(Path(file["path"]).parts[-2:]) if file and file["path"] else None
