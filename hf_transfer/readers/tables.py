"""Tables: CSV, TSV, JSON, JSON Lines, Parquet, CoNLL files; cells keep the text of the file."""

import csv
import glob
import io
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.exceptions import DatasetsError

from hf_transfer.errors import UserError, one_line
from hf_transfer.readers.conll import SUFFIXES, read_sentences

log = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHER_DELIMITERS = "\t;,|"  # tried where the header has none of the suffix's, first to last
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})")  # as Python writes it: 007 is a text
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
SAVE_AS_UTF8 = "save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 {0} > utf8.csv"

Row = list[str]


def is_table(path: Path) -> bool:
    """Whether a path has the suffix of a table, in upper or lower case."""
    return path.suffix.lower() in READERS


def read_table(path: Path) -> Dataset:
    """The rows of a table in one file.

    CSV and TSV: only an empty cell is missing; NA and null are texts. A column whose cells are all
    whole numbers, as Python would write them, or all numbers, has that type; any other column is
    text, as it stands in the file. JSON has types of its own. Raises UserError if the file cannot
    be read, is empty, or has rows of more cells than columns.
    """
    try:
        rows = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise UserError(f"cannot read {path.name!r}: {error.strerror}", "check the file") from error
    if not len(rows):
        raise UserError(f"{path.name!r} holds no rows", "give a header and a line per row")
    return rows


def _read_parquet(path: Path) -> Dataset:
    try:
        # A path is taken for a pattern: brackets in it would stand for characters.
        return Dataset.from_parquet(glob.escape(str(path)))
    except (DatasetsError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path.name!r} is no Parquet file that can be read: "
            + one_line(error.__cause__ or error),
            "write it again, for example with DataFrame.to_parquet",
        ) from error


# --- CSV and TSV ---


def _read_csv(path: Path) -> Dataset:
    text = _read_text(path)
    delimiter = _find_delimiter(text, path)
    (_, header), *rows = _read_rows(text, delimiter, path)
    names = _column_names(header, path)
    columns: list[list[str | None]] = [[] for _ in names]
    for line, row in rows:
        if any(row[len(names) :]):
            raise UserError(
                f"line {line} of {path.name!r} has {len(row)} cells, the header has {len(names)}",
                f"name all columns in the header, or put quotes around cells with a {delimiter!r}",
            )
        for column, cell in itertools.zip_longest(columns, row[: len(names)]):
            column.append(cell or None)
    return Dataset(pa.table(dict(zip(names, map(_typed, columns), strict=True))))


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    mark = next(filter(content.startswith, BYTE_ORDER_MARKS), b"")
    encoding = BYTE_ORDER_MARKS.get(mark, "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path.name!r} is not {encoding.upper()}: byte 0x{content[error.start]:02x} "
            f"in line {line}",
            SAVE_AS_UTF8.format(path.name),
        ) from error
    if not text.strip():
        raise UserError(f"{path.name!r} is empty", "give a header and a line per row")
    if "\0" in text:
        raise UserError(
            f"{path.name!r} holds zero bytes: it is no table, or UTF-16 without a byte order mark",
            "save it as UTF-8",
        )
    return text


def _lines(text: str) -> list[str]:
    """The lines of a file; str.splitlines would also end one at U+2028, which a text may hold."""
    return re.split(r"\r\n|\r|\n", text)


def _find_delimiter(text: str, path: Path) -> str:
    """That of the suffix; where the header has none, the first of the others that it has."""
    header = next(filter(str.strip, _lines(text)))
    usual = DELIMITERS[path.suffix.lower()]
    if usual in header:
        return usual
    found = next(filter(header.__contains__, OTHER_DELIMITERS), usual)
    if found != usual:
        log.info("%s: columns are separated by %r", path.name, found)
    return found


def _read_rows(text: str, delimiter: str, path: Path) -> list[tuple[int, Row]]:
    """The number of the last line and the cells of each row, blank lines aside, header first.

    Quotes are those of RFC 4180 where the whole file keeps to it. Where it does not, each line is a
    row, and in a line that does not keep to it a quote is a character like any other: one stray
    quote would otherwise join all lines up to the next.
    """
    csv.field_size_limit(sys.maxsize)  # of the whole process; by default 131,072 characters
    try:
        return list(_rows(io.StringIO(text, newline=""), delimiter))
    except csv.Error:
        log.info("%s: quotes that do not enclose a cell are read as text", path.name)
    rows = []
    for number, line in enumerate(_lines(text), start=1):
        try:
            read = list(_rows([line], delimiter))
        except csv.Error:
            read = [(1, line.split(delimiter))]
        rows += [(number, row) for _, row in read]
    return rows


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    for row in reader:
        if len(row) > 1 or "".join(row).strip():
            yield reader.line_num, row


def _column_names(header: Row, path: Path) -> Row:
    names = [name.strip() or f"column_{number}" for number, name in enumerate(header, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"the header of {path.name!r} names {twice!r} twice", "give each column its own name"
        )
    return names


def _typed(cells: list[str | None]) -> pa.Array:
    """A column with the narrowest type that gives back what the file says."""
    held = [cell for cell in cells if cell is not None]
    if held and all(map(WHOLE_NUMBER.fullmatch, held)):
        return pa.array([None if cell is None else int(cell) for cell in cells], pa.int64())
    if held and all(map(NUMBER.fullmatch, held)) and not any(map(_is_code, held)):
        return pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())
    return pa.array(cells, pa.string())


def _is_code(cell: str) -> bool:
    """Whether a number would lose digits: it begins with a zero, or is too long for 64 bits."""
    return re.match(r"[-+]?(0\d|\d{19})", cell) is not None


# --- JSON ---


def _read_json(path: Path) -> Dataset:
    """Rows of JSON Lines, of a list of objects, or of one of columns or with such a list."""
    text = _read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = list(_json_lines(text, path))
    if isinstance(content, dict):  # of JSON Lines, one row
        is_row = path.suffix.lower() != ".json"
        content = [content] if is_row else _rows_of_object(content, path)
    if not isinstance(content, list) or not _are_rows(content):
        raise UserError(
            f"{path.name!r} holds no rows", 'give an object per line: {"text": "...", "label": 1}'
        )
    names = dict.fromkeys(itertools.chain.from_iterable(content))
    return Dataset(pa.table({name: _json_column(name, content, path) for name in names}))


def _json_lines(text: str, path: Path) -> Iterator[Any]:
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"line {number} of {path.name!r} is no JSON: {error.msg}", "fix or remove it"
                ) from error


def _are_rows(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _rows_of_object(content: dict[str, Any], path: Path) -> list[Any]:
    lists = {name: value for name, value in content.items() if isinstance(value, list)}
    of_rows = [name for name, rows in lists.items() if rows and _are_rows(rows)]
    if len(of_rows) > 1:
        raise UserError(
            f"{path.name!r} holds several lists of rows: {', '.join(of_rows)}",
            "give each a file of its own, named train, validation, test",
        )
    if of_rows:
        return lists[of_rows[0]]
    if len(lists) == len(content) and len(set(map(len, lists.values()))) == 1:  # columns
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return [content]


def _json_column(name: str, rows: list[dict[str, Any]], path: Path) -> pa.Array:
    cells = [row.get(name) for row in rows]
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        kinds = sorted({type(cell).__name__ for cell in cells if cell is not None})
        raise UserError(
            f"the column {name!r} of {path.name!r} holds values of several kinds: "
            + ", ".join(kinds),
            "give all of them one type",
        ) from error


def _read_conll(path: Path) -> Dataset:
    return read_sentences(_lines(_read_text(path)), path)


READERS: dict[str, Callable[[Path], Dataset]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
    **dict.fromkeys(SUFFIXES, _read_conll),
}
