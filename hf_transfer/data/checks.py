"""What is wrong with the rows of a dataset, and what they are: pure functions of their stored content."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset
from PIL import Image as PILImage
from tqdm.auto import tqdm

from hf_transfer.errors import UserError
from hf_transfer.tasks import Task

WORTH_A_BAR = 5000  # rows


def require_usable(splits: dict[str, Dataset], task: Task) -> None:
    """Raise UserError if an input is missing, or a picture cannot be decoded; the first one is named."""
    for split in splits.values():
        rows = stored_rows(split)
        for row in tqdm(rows, total=len(split), desc="checking rows", disable=len(split) < WORTH_A_BAR):
            value = row[task.modality]
            if value is None or value == "":
                raise UserError(f"row {row['id']} has no {task.modality}", "fill it in or remove the row")
            if isinstance(value, bytes):
                _require_picture(row["id"], value)


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
    for table in split.with_format("arrow").iter(1000):
        for row in table.to_pylist():
            yield {column: _content(value) if isinstance(value, dict) else value for column, value in row.items()}


def _content(picture: dict[str, Any]) -> bytes:
    return picture["bytes"] or Path(picture["path"]).read_bytes()


def _require_picture(row: str, content: bytes) -> None:
    try:
        PILImage.open(io.BytesIO(content)).load()
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files that are damaged
        raise UserError(f"the picture of row {row} cannot be read: {error}", "mend it or remove it") from error
