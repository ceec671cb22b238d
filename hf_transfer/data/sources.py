"""Data: the splits of a task, read from a Hub id, a folder, a file or builtin:NAME."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DownloadManager, load_from_disk

from hf_transfer.config.data import DataConfig
from hf_transfer.data.builtin import load_builtin
from hf_transfer.data.checks import CheckedRow, check_split, fingerprint, summarize_bad
from hf_transfer.data.columns import find_columns, require_same_columns, select_columns
from hf_transfer.data.groups import GROUP, check_groups, groups_of
from hf_transfer.data.held_out import require_different, require_held_out, require_labelled
from hf_transfer.data.labels import LabelKind, find_label_kind, find_problem_type
from hf_transfer.data.one_hot import join_one_hot
from hf_transfer.data.prepared import Preparation, Prepared, prepare_images
from hf_transfer.data.single_label import class_label_names, similar_names
from hf_transfer.data.sounds import sound_facts
from hf_transfer.data.spans import read_spans
from hf_transfer.data.splits import (
    deal_groups,
    examples_per_class,
    stratified_holdout,
    stratified_sample,
)
from hf_transfer.errors import UserError, one_line, unknown
from hf_transfer.hub_repository import find_repository
from hf_transfer.readers.described import load_described, readable
from hf_transfer.readers.folders import read_folder, with_named_files
from hf_transfer.readers.tables import READERS, is_table, read_table
from hf_transfer.record import ProblemType
from hf_transfer.tasks import MODALITIES, Task, find_task

log = logging.getLogger(__name__)

FORMATS = (*READERS, ".zip")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.15
FEWEST_VALIDATION_ROWS = 100  # fewer tell little about the best step, and teach more
FEWEST_GROUPS = 3  # to take one for validation: two remain, to make folds of
SPLIT_SEED = 0  # held-out rows do not change with --seed: runs stay comparable


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from; `revision` is None unless it is on the Hub."""

    id: str
    revision: str | None = None
    license: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class Data:
    """Splits "train", "test" and, where there is one, "validation".

    Columns: the task's modality ("image", "audio", or "text" and perhaps "text_pair"), "label" (id
    of a class, multi-hot row over `labels`, or number, by the problem type), "id" (split/row) and,
    with --group_column, "group" (a text).
    Where the task labels words, "text" is a list of words and "label" a list of ids, one for each.
    """

    splits: dict[str, Dataset]
    labels: tuple[str, ...]  # label names
    origin: Origin
    fingerprint: str
    task: Task
    problem_type: ProblemType = "single_label_classification"
    # Of a text in tokens, of a sound in seconds; None: as the model takes.
    max_length: float | None = None
    cut: tuple[str, ...] = ()  # splits that the source lacks, cut from its training rows
    # "id" and "reason" of each row that cannot be used and was left out.
    dropped: tuple[dict[str, str], ...] = ()
    columns: dict[str, str] = field(default_factory=dict)  # our column name -> the dataset's
    # Number of image files of each kind that `Image.convert` reads otherwise (data/pixels.py).
    image_kinds: dict[str, int] = field(default_factory=dict)
    prepared: Prepared | None = None  # what one pass over the images found
    seconds: float = 0.0  # loading time

    @property
    def train(self) -> Dataset:
        """Examples to train on."""
        return self.splits["train"]

    @property
    def validation(self) -> Dataset | None:
        """Examples to choose the best step by, or None."""
        return self.splits.get("validation")

    @property
    def test(self) -> Dataset:
        """Held-out examples for the evaluation, used once."""
        return self.splits["test"]


def load_data(
    config: DataConfig, task: Task | str, seed: int, preparation: Preparation | None = None
) -> Data:
    """Examples to train on, to validate and to test.

    Images are decoded here, once: with a preparation, what the processor makes of them is kept.

    Rows that cannot be used are left out first, by the data alone. A missing test split is cut from
    the training rows (a fifth, stratified, the same for every seed), a missing validation split too
    (15 %), unless `examples_per_class` is given or it would have fewer than 100 rows. Raises
    UserError for what is missing or does not fit, and more bad rows than `on_bad_example` allows.
    """
    began = time.perf_counter()
    task = find_task(task)
    splits, columns, origin = _read_splits(config, task)
    label = columns["label"]
    feature = splits["train"].features[label]
    problem_type = find_problem_type(feature, label, config.problem_type, task.labels_words)
    kind = find_label_kind(problem_type, task, config.examples_per_class)
    require_same_columns(splits, columns, task, kind)
    require_labelled(splits, label)
    stored = {split: select_columns(rows, split, columns) for split, rows in splits.items()}
    prepared = _read_images(stored, kind, config, preparation)
    bad, image_kinds = _check_rows(stored, kind, config, prepared)
    identified = prepared.with_digests(stored) if prepared else stored
    rows, names = _encode(identified, {row.id for row in bad}, label, kind)
    require_held_out(rows)
    rows = _cut_missing(rows, config, kind, names)
    rows["train"] = _limit(rows["train"], config, seed, kind)
    _check_training_labels(rows, names, kind)
    return Data(
        splits=prepared.without_digests(rows) if prepared else rows,
        labels=names,
        origin=origin,
        fingerprint=fingerprint(rows),
        task=task,
        problem_type=problem_type,
        max_length=getattr(config, MODALITIES[task.modality].limit or "", None),
        cut=tuple(sorted(set(rows) - set(splits))),
        dropped=tuple({"id": row.id, "reason": str(row.reason)} for row in bad),
        columns=columns,
        image_kinds=image_kinds,
        prepared=prepared,
        seconds=time.perf_counter() - began,
    )


def _read_splits(
    config: DataConfig, task: Task
) -> tuple[dict[str, Dataset], dict[str, str], Origin]:
    """The splits as stored, the names of their columns, and where they come from."""
    with PartialState().local_main_process_first():  # it fills the cache, the others read it
        raw, origin = read_source(config, task.modality)
    splits = _pick_splits(raw, config)
    splits = read_spans(splits, config) if task.labels_words else join_one_hot(splits, config)
    return splits, find_columns(splits["train"], config, task), origin


def read_source(
    config: DataConfig, modality: str, needs_label: bool = True
) -> tuple[Mapping[str, Dataset], Origin]:
    """The dataset that `--dataset_name` names, as stored, and its origin; see read_folder."""
    name = str(config.dataset_name)
    if name.startswith("builtin:"):
        rows, description = load_builtin(name.removeprefix("builtin:"))
        return rows, Origin(name, description=description)
    path = Path(name).expanduser()
    if path.exists():
        raw = _read_path(path, config, modality, needs_label)
        return raw, Origin(f"local:{path.resolve().name}")
    is_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if is_path or is_table(path) or path.suffix.lower() == ".zip":
        raise UserError(
            f"no folder or file {name!r}", "check --dataset_name; a Hub id looks like user/name"
        )
    found = find_repository(name, "dataset", config.dataset_revision)
    raw = load_described(name, config.dataset_config_name, revision=found.revision)
    return raw, Origin(found.id, found.revision, found.license)


def _read_path(
    path: Path, config: DataConfig, modality: str, needs_label: bool
) -> Mapping[str, Dataset]:
    if path.is_file():
        if is_table(path):
            rows = read_table(path)
            return {config.train_split: with_named_files(rows, path.parent, modality)}
        if path.suffix.lower() == ".zip":
            return read_folder(_unpacked(path), modality, needs_label)
        raise UserError(f"cannot read {path.name!r}", f"a file is one of {', '.join(FORMATS)}")
    if (path / "dataset_dict.json").is_file():
        with readable():
            return load_from_disk(str(path))
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        with readable():
            return {config.train_split: load_from_disk(str(path))}
    if config.dataset_config_name or _names_its_files(path):
        return load_described(str(path), config.dataset_config_name)
    return read_folder(path, modality, needs_label)


def _names_its_files(folder: Path) -> bool:
    """Whether a folder's README.md says, as on the Hub, which files are which split."""
    readme = folder / "README.md"
    if not readme.is_file():
        return False
    block = readme.read_text(encoding="utf-8", errors="replace").split("---")
    return len(block) > 2 and not block[0].strip() and "configs:" in block[1]


def _unpacked(path: Path) -> Path:
    """The folder with the content of a zip file, in the cache of datasets."""
    try:
        folder = Path(DownloadManager(dataset_name=path.stem).extract(str(path)))
    except (BadZipFile, OSError) as error:
        raise UserError(
            f"cannot unpack {path.name!r}: {one_line(error)}", "zip it again"
        ) from error
    if not folder.is_dir():
        raise UserError(f"{path.name!r} is no zip file", "zip the folder again")
    return folder


def _pick_splits(raw: Mapping[str, Dataset], config: DataConfig) -> dict[str, Dataset]:
    """Role ("train", "validation", "test") -> split: as given, or of a usual name."""
    given = {
        "train": config.train_split,
        "validation": config.validation_split,
        "test": config.test_split,
    }
    for name in given.values():
        if name is not None and name not in raw:
            raise unknown("split", name, raw)
    for role, usual in (("validation", VALIDATION_NAMES), ("test", ("test",))):
        unused = raw.keys() - given.values()
        given[role] = given[role] or next(filter(unused.__contains__, usual), None)
    require_different(given)
    return {role: raw[name] for role, name in given.items() if name is not None}


def _read_images(
    stored: dict[str, Dataset],
    kind: LabelKind,
    config: DataConfig,
    preparation: Preparation | None,
) -> Prepared | None:
    """What one pass over the images finds, once their labels are found right; None for others."""
    if "image" not in stored["train"].features:
        return None
    _check_splits(stored, kind, config, None)
    return prepare_images(stored, preparation)


def _check_rows(
    stored: dict[str, Dataset], kind: LabelKind, config: DataConfig, prepared: Prepared | None
) -> tuple[list[CheckedRow], dict[str, int]]:
    """As _check_splits; the log says what is left out, and which images are special."""
    bad, kinds = _check_splits(stored, kind, config, prepared)
    if bad:
        log.warning(
            "left out %d of %d examples, which cannot be used: %s",
            len(bad),
            sum(map(len, stored.values())),
            summarize_bad(bad),
        )
    for image_kind, count in kinds.items():
        log.info("%d images are %s: read as people see them", count, image_kind)
    return bad, kinds


def _check_splits(
    stored: dict[str, Dataset], kind: LabelKind, config: DataConfig, prepared: Prepared | None
) -> tuple[list[CheckedRow], dict[str, int]]:
    """The rows to leave out, in order, and the number of images by kind of data/pixels.py.

    Raises UserError as check_split does.
    """
    known = class_label_names(stored["train"].features["label"])
    bad: list[CheckedRow] = []
    kinds: Counter[str] = Counter()
    # Reversed: a test split without labels is reported before all other rows are read.
    for split, rows in reversed(stored.items()):
        check_label = partial(kind.check_label, rows.features["label"], known)
        files = prepared.splits[split].facts if prepared else sound_facts(rows, config.max_seconds)
        skip = config.on_bad_example == "skip"
        found, special = check_split(split, rows, check_label, skip, files)
        bad = found + bad
        kinds.update(special)
    return bad, dict(kinds)


def _encode(
    stored: dict[str, Dataset], bad: set[str], column: str, kind: LabelKind
) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """Splits less the bad rows, with encoded labels; the label names. `column` held the labels."""
    good: dict[str, np.ndarray] = {}
    labels: dict[str, Dataset] = {}
    for split, rows in stored.items():
        good[split] = np.flatnonzero([row not in bad for row in rows["id"][:]])
        selected = rows.select_columns("label").select(good[split])
        labels[split] = selected.rename_columns({"label": column})
    names = kind.find_label_names(labels, column)
    feature = kind.encoded_feature(names)
    encoded = {}
    for split, rows in stored.items():
        values: list[Any] = [None] * len(rows)
        for row, label in zip(
            good[split], kind.encode_labels(labels[split], column, names), strict=True
        ):
            values[row] = label
        # The column comes before the selection: adding one to selected rows copies all images.
        rows = rows.remove_columns("label").add_column("label", values, feature=feature)
        encoded[split] = rows.select(good[split])
    return encoded, names


def _cut_missing(
    rows: dict[str, Dataset], config: DataConfig, kind: LabelKind, names: tuple[str, ...]
) -> dict[str, Dataset]:
    rows = dict(rows)
    if config.group_column:
        check_groups(rows, config.group_column)
    if "test" not in rows:
        rows["train"], rows["test"] = _cut(rows["train"], TEST_SHARE, kind)
        log.info("no test split: %d of the training rows are held out as one", len(rows["test"]))
    if len(rows["test"]) == 0:
        are_numbers = all(name.lstrip("-").isdecimal() for name in names)
        raise UserError(
            f"too few examples to hold any out as a test split: {len(rows['train'])} rows of "
            f"{len(names)} classes",
            "give more rows, or a test split"
            + ("; for numbers to estimate, --problem_type regression" if are_numbers else ""),
        )
    enough = len(rows["train"]) * VALIDATION_SHARE >= FEWEST_VALIDATION_ROWS
    if config.group_column:
        enough = enough and len(set(rows["train"]["group"][:])) >= FEWEST_GROUPS
    if "validation" not in rows and enough and config.examples_per_class is None:
        rows["train"], rows["validation"] = _cut(rows["train"], VALIDATION_SHARE, kind)
    return rows


def _cut(rows: Dataset, share: float, kind: LabelKind) -> tuple[Dataset, Dataset]:
    strata = kind.strata(rows["label"][:])
    groups = groups_of(rows)
    if groups is None:
        remaining, held_out = stratified_holdout(strata, share, SPLIT_SEED)
    else:
        part = deal_groups(strata, groups, (1 - share, share), SPLIT_SEED)
        remaining, held_out = np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    return rows.select(remaining), rows.select(held_out)


def _limit(train: Dataset, config: DataConfig, seed: int, kind: LabelKind) -> Dataset:
    wanted = config.examples_per_class
    if wanted is not None:
        largest = max(Counter(train["label"][:]).values())
        if largest < wanted:
            log.warning(
                "--examples_per_class %d has no effect: no class has more than %d", wanted, largest
            )
        train = train.select(examples_per_class(train["label"][:], wanted, seed))
    if config.max_train_samples is not None:
        strata = kind.strata(train["label"][:])
        train = train.select(stratified_sample(strata, config.max_train_samples, seed))
    return train


def _check_training_labels(
    rows: dict[str, Dataset], names: tuple[str, ...], kind: LabelKind
) -> None:
    train = rows["train"]["label"][:]
    kind.require_learnable(train, names)
    tested = kind.present(rows["test"]["label"][:])
    unseen = tested - kind.present(train)
    if GROUP in rows["train"].column_names and unseen == tested:
        raise UserError(
            "no class of the test split has a training example: each is in one group alone",
            "name another --group_column: groups of rows that belong together, not classes",
        )
    if unseen:
        log.warning(
            "classes without a training example, never learned: %s",
            ", ".join(map(names.__getitem__, unseen)),
        )
    for alike in similar_names(names):
        log.warning(
            "these classes differ by case or spaces alone, and may be one: %s",
            ", ".join(map(repr, alike)),
        )
