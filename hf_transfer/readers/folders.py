"""Folders: their files are counted, then read as class folders, as tables, or as both joined."""

import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from datasets import Audio, ClassLabel, Dataset, Features, Image, Value, concatenate_datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_transfer.errors import UserError, one_line
from hf_transfer.readers.tables import is_table, read_table
from hf_transfer.tasks import MODALITIES

log = logging.getLogger(__name__)

# What a split is called in the names of files and folders.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
TEXT_DTYPES = ("string", "large_string")
# Modality -> type of a column of files. Sounds are decoded by data/sounds.py.
FILE_FEATURES: dict[str, Image | Audio] = {"image": Image(), "audio": Audio(decode=False)}
SUFFIXES = {
    "image": frozenset(ImageFolder.EXTENSIONS),
    # What libsndfile reads; M4A and WMA are not among it.
    "audio": frozenset(
        [".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"]
    ),
    "text": frozenset([".txt"]),
}
SHARD = re.compile(r"[-_]?\d+[-_]of[-_]\d+$")
SHARE_OF_FILES = 0.9  # of a column's first cells that must name an image for it to be such a column
SAMPLE = 50  # cells

Splits = dict[str, Dataset]


@dataclass(frozen=True)
class Inventory:
    """The files below a folder, as paths relative to it, sorted; `hidden` is a number of files."""

    root: Path
    inputs: dict[str, tuple[Path, ...]]  # by modality
    tables: tuple[Path, ...]
    others: tuple[Path, ...]
    hidden: int

    def not_of(self, modality: str) -> list[Path]:
        """All files but the inputs of a modality."""
        groups = [paths for name, paths in self.inputs.items() if name != modality]
        return [*itertools.chain(*groups), *self.tables, *self.others]


def take_inventory(root: Path) -> Inventory:
    """The files below a folder. Links are followed; names that begin with a dot are hidden."""
    files: list[Path] = []
    hidden = 0
    seen: set[str] = set()  # so that a link to a folder above ends
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not _is_hidden(name))
        shown = [name for name in names if not _is_hidden(name)]
        hidden += len(names) - len(shown)
        files += [Path(folder, name).relative_to(root) for name in shown]
    files.sort(key=lambda path: path.parts)
    of_kind: dict[str, list[Path]] = {kind: [] for kind in (*SUFFIXES, "table", "other")}
    for path in files:
        of_kind[_kind_of_file(path)].append(path)
    groups = {kind: tuple(paths) for kind, paths in of_kind.items()}
    tables, others = groups.pop("table"), groups.pop("other")
    return Inventory(root, groups, tables, others, hidden)


def _kind_of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    modality = next((name for name, known in SUFFIXES.items() if suffix in known), None)
    return modality or ("table" if is_table(path) else "other")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def read_folder(root: Path, modality: str, needs_label: bool = True) -> Splits:
    """The splits of a folder: inputs in class folders, tables, or tables that name files.

    Unless it `needs_label`, inputs in no class folder are a training split without labels. What is
    not read is counted in the log. Raises UserError if there is nothing to read.
    """
    found = take_inventory(root)
    inputs = found.inputs[modality]
    noun = MODALITIES[modality].noun
    are_files = modality in FILE_FEATURES and bool(inputs)
    joined = _read_lists_of_files(found, modality) if are_files else None
    if joined:
        return joined
    if found.tables and not are_files:
        return _read_tables(found)
    if not inputs:
        raise UserError(
            f"the folder {root.name!r} holds no {noun} that can be read"
            + (f": {_count_suffixes(found.others)}" if found.others else ""),
            f"give a folder of {noun}s per class, or CSV / JSON Lines / Parquet files, "
            "named train, validation, test",
        )
    return _read_class_folders(found, inputs, modality, needs_label)


# --- class folders ---


def _read_class_folders(
    found: Inventory, inputs: Sequence[Path], modality: str, needs_label: bool
) -> Splits:
    roots = find_split_folders(inputs)
    classes: dict[str, dict[Path, str]] = {}
    for split, top in roots.items():
        below = [path for path in inputs if path.parts[: len(top)] == top]
        inside = [path for path in below if len(path.parts) > len(top) + 1]
        classes[split] = {path: path.parts[len(top)] for path in inside}
    used = set().union(*classes.values())
    if not used and not needs_label:
        rows = _as_dataset(found.root, dict.fromkeys(inputs, ""), [""], modality)
        return {"train": rows.remove_columns("label")}
    if not used:
        raise UserError(
            f"the {len(inputs)} {MODALITIES[modality].noun}s of {found.root.name!r} stand in no "
            "class folders",
            "put them into a folder per class, or add a table that names them: "
            "labels.csv with the columns file, label",
        )
    _log_passed_over(found, [path for path in inputs if path not in used], modality)
    names = sorted(set().union(*(rows.values() for rows in classes.values())))
    return {
        split: _as_dataset(found.root, rows, names, modality) for split, rows in classes.items()
    }


def find_split_folders(paths: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Split -> the parts of the folder that holds its class folders; () for the root.

    A first-level folder is a split if it has a split's name and holds class folders. All other
    folders are classes, whatever they are called: a class may well be `train`.
    """
    top = _innermost_around_all(paths)
    inner = _folders_below(paths, top)
    splits = {split: name for name in inner if inner[name] and (split := split_of_name(name))}
    if "train" not in splits:
        return {"train": top}
    classes = [inner[name] for name in splits.values()]
    share_classes = len(set().union(*classes)) < sum(map(len, classes))
    if any(split_of_name(name) is None for name in inner) and not share_classes:
        return {"train": top}  # it stands among classes, with folders below it as they have
    return {split: (*top, name) for split, name in splits.items()}


def _innermost_around_all(paths: Sequence[Path]) -> tuple[str, ...]:
    """The folder below which the class folders or the splits begin: past folders of one folder."""
    top: tuple[str, ...] = ()
    while True:
        inner = _folders_below(paths, top)
        only = next(iter(inner), "")
        is_alone = len(inner) == 1 and all(len(path.parts) > len(top) + 1 for path in paths)
        if not is_alone or not inner[only] or split_of_name(only):
            return top
        top = (*top, only)


def split_of_name(name: str) -> str | None:
    """The split that a folder is called after, or None."""
    return next((split for split, usual in SPLIT_NAMES.items() if name.lower() in usual), None)


def _folders_below(paths: Iterable[Path], top: tuple[str, ...]) -> dict[str, set[str]]:
    """Folder below `top` that holds inputs -> the folders in it that do."""
    depth = len(top)
    folders: dict[str, set[str]] = {}
    for path in paths:
        if path.parts[:depth] == top and len(path.parts) > depth + 1:
            deeper = folders.setdefault(path.parts[depth], set())
            if len(path.parts) > depth + 2:
                deeper.add(path.parts[depth + 1])
    return folders


def _as_dataset(
    root: Path, rows: Mapping[Path, str], names: Sequence[str], modality: str
) -> Dataset:
    paths = [str(root / path) for path in rows]
    inputs = paths if modality in FILE_FEATURES else [_read_text(root / path) for path in rows]
    features = Features({modality: Value("string"), "label": ClassLabel(names=list(names))})
    numbers = {name: number for number, name in enumerate(names)}
    made = Dataset.from_dict(
        {modality: inputs, "label": [numbers[name] for name in rows.values()]}, features=features
    )
    # Cast afterwards: what is made of sounds at once is encoded, which needs torchcodec.
    return (
        made.cast_column(modality, FILE_FEATURES[modality]) if modality in FILE_FEATURES else made
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the text {path.name!r} is not UTF-8", "save it as UTF-8, or remove it"
        ) from error


def _log_passed_over(found: Inventory, unused: Sequence[Path], modality: str) -> None:
    """Say what of a folder is not read."""
    folders = Counter(str(path.parent) for path in unused)
    for folder, count in folders.items():
        place = (
            "directly in the folder" if folder == "." else f"in {folder}/, outside class folders"
        )
        log.warning("not read: %d %ss %s", count, MODALITIES[modality].noun, place)
    foreign = found.not_of(modality)
    if foreign:
        log.info("not read: %s", _count_suffixes(foreign))
    if found.hidden:
        log.info("not read: %d hidden files", found.hidden)


def _count_suffixes(paths: Iterable[Path]) -> str:
    counts = Counter(path.suffix.lower() or "no suffix" for path in paths)
    return ", ".join(f"{count} files ({suffix})" for suffix, count in counts.most_common(5))


# --- tables ---


def _read_tables(found: Inventory) -> Splits:
    files = assign_splits(found.tables)
    rest = [*itertools.chain(*found.inputs.values()), *found.others]
    if rest:
        log.info("not read: %s", _count_suffixes(rest))
    return {split: _read_all(found.root, paths) for split, paths in files.items()}


def _read_all(root: Path, paths: Sequence[Path]) -> Dataset:
    return join_tables([read_table(root / path) for path in paths])


def assign_splits(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Split -> its files: by a split's name in the file's or a folder's name, else the file's own.

    Files that name no split are all training files, unless others are.
    """
    named = {path: _split_in_path(path) for path in paths}
    names = {path: split or SHARD.sub("", path.stem) for path, split in named.items()}
    if "train" not in names.values():
        names |= {path: "train" for path, split in named.items() if split is None}
    splits: dict[str, list[Path]] = {}
    for path, name in names.items():
        splits.setdefault(name, []).append(path)
    return splits


def _split_in_path(path: Path) -> str | None:
    """The split that a word of the file's name, or else of the innermost folder's, names."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        words = re.split(r"[^a-z]+", part.lower())
        split = next(filter(None, map(split_of_name, words)), None)
        if split:
            return split
    return None


def join_tables(tables: Sequence[Dataset]) -> Dataset:
    """The rows of all tables; a column that one lacks is empty there.

    Raises UserError if a column is of different kinds.
    """
    first = tables[0]
    if all(table.features == first.features for table in tables):
        return concatenate_datasets(list(tables)) if len(tables) > 1 else first
    parts = [table.with_format("arrow")[:] for table in tables]
    try:
        return Dataset(pa.concat_tables(parts, promote_options="permissive"))
    except pa.ArrowTypeError as error:
        raise UserError(
            f"the files of one split hold different columns: {one_line(error)}",
            "give a column one type in all files",
        ) from error


# --- tables that name files ---


def _read_lists_of_files(found: Inventory, modality: str) -> Splits | None:
    """Tables with a column that names inputs beside or below them; None if there are none.

    A file is named by its path, by its name, or by its name without the suffix.
    """
    parts: dict[str, list[Dataset]] = {}
    named: set[Path] = set()
    lists: list[str] = []
    inputs = found.inputs[modality]
    inputs_at = {path.with_suffix("") for path in inputs}.union(inputs)
    for path in found.tables:
        # 1.json or 1.jpg.json describes the file beside it.
        if len(path.parts) > 2 or path.with_suffix("") in inputs_at:
            continue
        rows = read_table(found.root / path)
        files = _names_of_files(inputs, path.parent)
        column = _find_file_column(rows, files)
        if column is None:
            continue
        listed = [files.get(str(name), path.parent / str(name)) for name in rows[column][:]]
        named.update(listed)
        lists.append(str(path))
        stored = [str(found.root / file) for file in listed]
        rows = _with_files(rows.rename_columns({column: modality}), modality, stored, modality)
        for split, numbers in _split_rows(path, listed).items():
            parts.setdefault(split, []).append(rows.select(numbers))
    if not parts:
        return None
    count = len(named.intersection(inputs))
    noun = MODALITIES[modality].noun
    log.info("%d of the %d %ss are named in %s", count, len(inputs), noun, ", ".join(lists))
    return {split: join_tables(tables) for split, tables in parts.items()}


def with_named_files(rows: Dataset, folder: Path, modality: str) -> Dataset:
    """The rows of a table, files in place of a column that names files of a modality.

    Paths are relative to `folder`, the table's. The same rows if there is no such column.
    """
    suffixes = SUFFIXES[modality] if modality in FILE_FEATURES else ()
    for column, feature in rows.features.items():
        if suffixes and getattr(feature, "dtype", None) in TEXT_DTYPES:
            cells = rows[column][:]
            files = [folder / cell for cell in filter(None, cells[:SAMPLE])]
            named = sum(file.suffix.lower() in suffixes and file.is_file() for file in files)
            if files and named >= SHARE_OF_FILES * len(files):
                stored = [str(folder / cell) if cell else None for cell in cells]
                return _with_files(rows, column, stored, modality)
    return rows


def _with_files(rows: Dataset, column: str, paths: Sequence[str | None], modality: str) -> Dataset:
    """The rows with files in a column in place of their names."""
    rows = rows.remove_columns(column).add_column(column, list(paths), feature=Value("string"))
    return rows.cast_column(column, FILE_FEATURES[modality])


def _names_of_files(inputs: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Each way to name a file in a table in `folder` -> its path; what names two is left out."""
    below = [path for path in inputs if path.is_relative_to(folder)]
    names = Counter(path.name for path in below)
    stems = Counter(path.stem for path in below)
    files = {path.stem: path for path in below if stems[path.stem] == 1}
    files |= {path.name: path for path in below if names[path.name] == 1}
    return files | {path.relative_to(folder).as_posix(): path for path in below}


def _find_file_column(rows: Dataset, files: Mapping[str, Path]) -> str | None:
    """The column of a table that names files, or None."""
    for column, values in rows[:SAMPLE].items():
        cells = [str(value) for value in values if value is not None]
        if cells and sum(cell in files for cell in cells) >= SHARE_OF_FILES * len(cells):
            return str(column)
    return None


def _split_rows(table: Path, files: Sequence[Path]) -> dict[str, list[int]]:
    """Split -> rows of a table: by the table's own path, else by the folder of each file."""
    own = _split_in_path(table)
    folders = [split_of_name(file.parts[0]) for file in files]
    splits = folders if own is None and None not in folders else [own or "train"] * len(files)
    rows: dict[str, list[int]] = {}
    for number, split in enumerate(splits):
        rows.setdefault(str(split), []).append(number)
    return rows
