"""`hf-transfer predict MODEL INPUT ...`: the predictions of a fine-tuned model, one per line."""

import argparse
import csv
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.cli.command import output_may_end
from hf_transfer.errors import UserError, unknown

if TYPE_CHECKING:  # loading them takes seconds
    from datasets import Dataset

    from hf_transfer.inference import FinishedModel, Row
    from hf_transfer.tasks import Task

log = logging.getLogger(__name__)

Named = tuple[str, "Row"]  # how an input is printed, and what the model reads


def add_parser(subparsers: Any) -> None:
    """Add the command `predict`."""
    parser = subparsers.add_parser("predict", help="classify images, texts or sounds with a model")
    parser.add_argument("model", help="folder of a run, or model id on the Hub")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, sounds, or folders of them; texts, .txt files, folders of them, or tables "
        "(CSV, TSV, JSON Lines, Parquet); - reads lines from standard input",
    )
    parser.add_argument(
        "--top_k",
        type=int,
        help="number of predictions per input (default: 1; multi-label: all above "
        "their thresholds)",
    )
    parser.add_argument(
        "--column", help="column of a table with the texts (default: that of the training data)"
    )
    parser.set_defaults(action=print_predictions)


def print_predictions(arguments: argparse.Namespace) -> None:
    """Print input, label and probability (regression: the number), separated by tabs.

    Of words with tags: word, tag and probability.
    """
    from hf_transfer.inference import answers, load_finished

    top_k = arguments.top_k
    if top_k is not None and top_k < 1:
        raise UserError(f"--top_k {top_k} is too small", "give 1 or more")
    finished = load_finished(arguments.model)
    words = arguments.inputs
    if words == ["-"]:
        words = [line.rstrip("\n") for line in sys.stdin]
    inputs = READERS[finished.task.modality](words, finished, arguments.column)
    rows = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    names: list[str] = []
    with output_may_end():
        for number, answer in enumerate(answers(finished, _rows(inputs, names), top_k)):
            if finished.task.labels_words:  # word, tag, probability; an empty line between texts
                rows.writerows([()] * bool(number) + list(answer))
            else:
                rows.writerows([names[number], *label] for label in answer)


def _rows(inputs: Iterator[Named], names: list[str]) -> Iterator["Row"]:
    """The rows of named inputs, whose names are appended to `names` as they are read."""
    for name, row in inputs:
        names.append(name)
        yield row


# --- texts ---


def _read_texts(words: list[str], finished: "FinishedModel", column: str | None) -> Iterator[Named]:
    """Texts as they stand, and those of the files that exist."""
    for word in words:
        path = Path(word)
        if word and _exists(path):  # an empty line would be the current folder
            yield from _read_text_file(path, finished, column)
        elif _looks_like_a_file(path):
            raise UserError(f"no file {word!r}", "check the path; a text may have no such ending")
        else:
            yield from _alone({word: word}, finished)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text longer than any file's name
        return False


def _looks_like_a_file(path: Path) -> bool:
    from hf_transfer.readers.tables import is_table

    return is_table(path) and " " not in path.name


def _read_text_file(path: Path, finished: "FinishedModel", column: str | None) -> Iterator[Named]:
    from hf_transfer.readers.folders import take_inventory
    from hf_transfer.readers.tables import READERS as TABLES
    from hf_transfer.readers.tables import is_table, read_table

    if path.is_dir():
        texts = take_inventory(path).inputs["text"]
        if not texts:
            raise UserError(
                f"the folder {str(path)!r} holds no .txt files", "name texts or a table"
            )
        yield from _alone({str(path / each): _read_text(path / each) for each in texts}, finished)
    elif is_table(path):
        yield from _read_columns(read_table(path), finished, column)
    elif path.suffix.lower() == ".txt":
        yield from _alone({str(path): _read_text(path)}, finished)
    else:
        raise UserError(
            f"{str(path)!r} is a file that this model of texts cannot read",
            f"give a .txt file, or a table: {', '.join(TABLES)}",
        )


def _alone(texts: Mapping[str, str], finished: "FinishedModel") -> Iterator[Named]:
    if finished.reads_pairs:
        first, second = (finished.columns[name] for name in ("text", "text_pair"))
        raise UserError(
            "this model reads pairs of texts, and this is one text",
            f"give a table with the columns {first!r} and {second!r}",
        )
    for name, text in texts.items():
        if finished.task.labels_words:
            yield from ((line, {"text": line}) for line in _lines(text))
        else:
            yield name, {"text": text}


def _lines(text: str) -> list[str]:
    """The lines that are not blank: a text each, where words have tags."""
    return list(filter(str.strip, text.splitlines()))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is no text in UTF-8", "save it as UTF-8") from error


def _read_columns(
    table: "Dataset", finished: "FinishedModel", column: str | None
) -> Iterator[Named]:
    column = column or _find_column(table, finished)
    columns = {"text": column}
    if finished.reads_pairs:
        columns["text_pair"] = finished.columns["text_pair"]
    for name in columns.values():
        if name not in table.column_names:
            raise unknown("column", name, table.column_names)
    if finished.task.labels_words:
        yield from ((str(number), {"text": cell}) for number, cell in enumerate(table[column]))
        return
    for number, cells in enumerate(
        zip(*(table[name][:] for name in columns.values()), strict=True)
    ):
        if any(cell is None for cell in cells):
            raise UserError(f"row {number} of the table has no text", "fix or remove it")
        row = dict(zip(columns, map(str, cells), strict=True))
        yield " | ".join(row.values()), row


def _find_column(table: "Dataset", finished: "FinishedModel") -> str:
    """The column of the training data, of a usual name, or the only one of texts."""
    from hf_transfer.data.columns import holds_inputs
    from hf_transfer.tasks import find_task

    tasks = [finished.task]
    if finished.task.labels_words:  # texts are split into words
        tasks.append(find_task("text-classification"))
    names = [
        name
        for task in tasks
        for name in table.column_names
        if holds_inputs(table.features[name], task)
    ]
    usual = (finished.columns.get("text"), *finished.task.column_names)
    only = names[0] if len(names) == 1 else None
    found = next(filter(names.__contains__, usual), only)
    if found is None:
        raise UserError(
            "which column of the table holds the texts is not clear",
            f"give --column; columns: {', '.join(table.column_names)}",
        )
    return found


# --- images and sounds ---


def _read_files(words: list[str], finished: "FinishedModel", column: str | None) -> Iterator[Named]:
    task = finished.task
    if column is not None:
        raise UserError(
            f"--column {column} is for tables of texts", f"leave it out for {task.noun}s"
        )
    for word in words:
        path = Path(word)
        for file in _files_below(path, task) if path.is_dir() else [path]:
            yield str(file), {task.modality: OPENERS[task.modality](file)}


def _files_below(folder: Path, task: "Task") -> list[Path]:
    """The inputs of a task below a folder; other files are counted in the log."""
    from hf_transfer.readers.folders import take_inventory

    found = take_inventory(folder)
    inputs = found.inputs[task.modality]
    others = len(found.not_of(task.modality))
    if others or found.hidden:
        log.info("%s: %d files are no %ss, %d are hidden", folder, others, task.noun, found.hidden)
    if not inputs:
        raise UserError(
            f"the folder {str(folder)!r} holds no {task.noun}s", "name another, or files"
        )
    return [folder / file for file in inputs]


def _open_image(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    from hf_transfer.data.pixels import read_image

    try:
        with Image.open(path) as image:
            return read_image(image)
    except FileNotFoundError as error:
        raise UserError(
            f"no file {str(path)!r}", "this model classifies images: name files or folders"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is not an image that can be read", "leave it out or fix it"
        ) from error


def _open_sound(path: Path) -> Any:
    from hf_transfer.data.sounds import why_unreadable

    sound = {"bytes": None, "path": str(path)}
    if not path.exists():
        raise UserError(
            f"no file {str(path)!r}", "this model classifies sounds: name files or folders"
        )
    reason = why_unreadable(sound)
    if reason:
        raise UserError(
            f"{str(path)!r} is not a sound that can be used: {reason}",
            "leave it out, or save it as WAV or FLAC",
        )
    return sound


OPENERS: dict[str, Callable[[Path], Any]] = {"image": _open_image, "audio": _open_sound}
READERS: dict[str, Callable[[list[str], "FinishedModel", str | None], Iterator[Named]]] = {
    "text": _read_texts,
    "image": _read_files,
    "audio": _read_files,
}
