"""CoNLL files: a word and its tags per line, in columns; a blank line between sentences."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import Dataset, Features, List, Value

from hf_transfer.errors import UserError

SUFFIXES = (".conll", ".iob", ".iob2", ".bio")
DOCUMENT = "-DOCSTART-"  # a line that begins with it stands between documents
COMMENT = re.compile(r"#\s*\w+ =")  # as in Universal Dependencies; a bare # is a word

Line = tuple[int, list[str]]  # number and cells


def read_sentences(lines: Iterable[str], path: Path) -> Dataset:
    """The sentences of a CoNLL file: "tokens", "tags", and the columns between by their numbers.

    The first column has the words, the last the tags ("tags"), columns between are called
    "column_2" and so on. Raises UserError for lines of different numbers of columns.
    """
    sentences = [sentence for sentence in _sentences(lines) if sentence]
    if not sentences:
        raise UserError(f"{path.name!r} holds no sentences", "give a word and its tag per line")
    columns = len(sentences[0][0][1])
    if columns < 2:
        raise UserError(
            f"{path.name!r} has one column only", "give a word and its tag per line, and a blank"
        )
    names = ["tokens", *(f"column_{number}" for number in range(2, columns)), "tags"]
    table: dict[str, list[list[str]]] = {name: [] for name in names}
    for sentence in sentences:
        for number, cells in sentence:
            if len(cells) != columns:
                raise UserError(
                    f"line {number} of {path.name!r} has {len(cells)} columns, the first has "
                    f"{columns}",
                    "give every word as many columns, separated by blanks or tabs",
                )
        rows = zip(*(cells for _, cells in sentence), strict=True)
        for name, column in zip(names, rows, strict=True):
            table[name].append(list(column))
    return Dataset.from_dict(table, Features({name: List(Value("string")) for name in names}))


def _sentences(lines: Iterable[str]) -> Iterator[list[Line]]:
    sentence: list[Line] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(DOCUMENT):
            yield sentence
            sentence = []
        elif not COMMENT.match(line):
            # A word may hold other blanks, as a number in French does.
            cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            sentence.append((number, cells))
    yield sentence
