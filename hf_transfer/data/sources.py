"""Hub id, folder, file or builtin:NAME -> the splits of a task, with what is known of where they come from."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Image, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from hf_transfer.config import DataConfig, ProblemType
from hf_transfer.data.builtin import load_builtin
from hf_transfer.data.checks import find_bad, fingerprint, first_of
from hf_transfer.data.labels import TARGETS, Target, find_problem_type
from hf_transfer.data.single_label import coded_names
from hf_transfer.data.splits import examples_per_class, stratified_holdout, stratified_sample
from hf_transfer.errors import UserError, one_line, unknown
from hf_transfer.hub_repository import find_repository
from hf_transfer.tasks import Task, served_tasks

log = logging.getLogger(__name__)

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
LABEL_NAMES = ("label", "labels", "target", "class", "category")
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.15
FEWEST_VALIDATION_ROWS = 100  # fewer say little of which step is best, and teach more
SPLIT_SEED = 0  # rows held out do not change with --seed: runs stay comparable


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

    Columns: the task's modality ("image", or "text" and perhaps "text_pair"), "label" and "id" (split/row). A label is
    the id of a class, a row of zeros and ones over `labels`, or a number, by the problem type.
    """

    splits: dict[str, Dataset]
    labels: tuple[str, ...]
    origin: Origin
    fingerprint: str
    task: Task
    problem_type: ProblemType = "single_label_classification"
    max_length: int | None = None  # of a text, in tokens; None: as the model takes
    cut: tuple[str, ...] = ()  # splits that the source lacks and we cut from the training rows
    dropped: tuple[
        dict[str, str], ...
    ] = ()  # "id" and "reason" of each row that cannot be used and was left out
    seconds: float = 0.0  # that loading took

    @property
    def train(self) -> Dataset:
        """The examples to learn from."""
        return self.splits["train"]

    @property
    def validation(self) -> Dataset | None:
        """The examples to choose a step by, or None."""
        return self.splits.get("validation")

    @property
    def test(self) -> Dataset:
        """The examples to judge by, used once."""
        return self.splits["test"]


def load_data(config: DataConfig, task: Task, seed: int) -> Data:
    """The examples that a run learns from and is judged by.

    Rows that cannot be used are left out first: which ones depends on nothing but the data. A missing test split is
    cut from the training rows (a fifth, stratified, the same for every seed), a missing validation split too (15 %)
    unless the examples a class were limited or it would be of under 100 rows. Raises UserError for sources, splits and
    columns that do not exist, labels that do not fit the problem, and more bad rows than `on_bad_example` allows.
    """
    began = time.perf_counter()
    if task.name not in served_tasks():
        raise UserError(
            f"the data of {task.name} cannot be read yet", f"tasks: {', '.join(served_tasks())}"
        )
    with PartialState().local_main_process_first():  # it fills the cache, the others read it
        raw, origin = read_source(config)
    splits = _pick_splits(raw, config)
    columns = _pick_columns(splits["train"], config, task)
    problem_type = find_problem_type(
        splits["train"].features[columns["label"]], columns["label"], config.problem_type
    )
    _require_countable(problem_type, config)
    target = TARGETS[problem_type]
    _require_same_columns(splits, columns, task, target)
    stored = {split: _in_our_columns(rows, split, columns) for split, rows in splits.items()}
    bad = _find_bad(stored, target, config)
    rows, names = _encode(stored, bad, columns["label"], target)
    rows = _cut_missing(rows, config, target)
    rows["train"] = _limit(rows["train"], config, seed, target)
    target.require(rows["train"]["label"][:], names)
    unseen = target.present(rows["test"]["label"][:]) - target.present(rows["train"]["label"][:])
    if unseen:
        log.warning(
            "classes without a training example, never learned: %s",
            ", ".join(names[n] for n in unseen),
        )
    cut = tuple(sorted(set(rows) - set(splits)))
    dropped = tuple({"id": row, "reason": reason} for row, reason in bad.items())
    return Data(
        splits=rows,
        labels=names,
        origin=origin,
        fingerprint=fingerprint(rows),
        task=task,
        problem_type=problem_type,
        max_length=config.max_length,
        cut=cut,
        dropped=dropped,
        seconds=time.perf_counter() - began,
    )


def read_source(config: DataConfig) -> tuple[DatasetDict, Origin]:
    """What `--dataset_name` names, as it is, and its origin."""
    name = str(config.dataset_name)
    if name.startswith("builtin:"):
        rows, description = load_builtin(name.removeprefix("builtin:"))
        return rows, Origin(name, description=description)
    path = Path(name).expanduser()
    if path.exists():
        return _read_path(path, config), Origin(f"local:{path.resolve().name}")
    if (
        path.is_absolute()
        or name.startswith((".", "~"))
        or path.suffix in FORMATS
        or name.count("/") > 1
    ):
        raise UserError(
            f"no folder or file {name!r}", "check --dataset_name; a Hub id looks like user/name"
        )
    repository = find_repository(name, "dataset", config.dataset_revision)
    raw = _load(name, config.dataset_config_name, revision=repository.revision)
    return raw, Origin(repository.id, repository.revision, repository.license)


def _read_path(path: Path, config: DataConfig) -> DatasetDict:
    if path.is_file():
        if path.suffix not in FORMATS:
            raise UserError(f"cannot read {path.name!r}", f"a file is one of {', '.join(FORMATS)}")
        separator = {"sep": "\t"} if path.suffix == ".tsv" else {}
        return _load(
            FORMATS[path.suffix], None, data_files={config.train_split: str(path)}, **separator
        )
    if (path / "dataset_dict.json").is_file():
        with _readable():
            return load_from_disk(str(path))
    if any(file.suffix in FORMATS for file in path.rglob("*")):
        return _load(str(path), config.dataset_config_name)
    # Pictures only. Left to itself, the reader drops the labels of a folder that holds one class.
    return _load("imagefolder", None, data_dir=str(path), drop_labels=False)


def _load(name: str, config_name: str | None, **options: object) -> DatasetDict:
    with _readable():
        return load_dataset(name, config_name, **options)


@contextmanager
def _readable() -> Iterator[None]:
    """What datasets cannot read is said in one line: damaged files, labels named twice, columns that differ."""
    try:
        yield
    except (DatasetsError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise UserError(
            f"cannot read the dataset: {one_line(cause)}",
            "one folder a class with pictures, or CSV / JSON Lines / Parquet files, named train, validation, test",
        ) from error


def _pick_splits(raw: DatasetDict, config: DataConfig) -> dict[str, Dataset]:
    asked = {
        "train": config.train_split,
        "validation": config.validation_split,
        "test": config.test_split,
    }
    for name in asked.values():
        if name is not None and name not in raw:
            raise unknown("split", name, raw)
    usual = {"validation": VALIDATION_NAMES, "test": ("test",)}
    for role, names in usual.items():
        asked[role] = asked[role] or next(
            (n for n in names if n in raw and n not in asked.values()), None
        )
    return {role: raw[name] for role, name in asked.items() if name is not None}


def _pick_columns(train: Dataset, config: DataConfig, task: Task) -> dict[str, str]:
    """Our column name -> the dataset's."""
    foreign = [name for name in task.foreign_flags if getattr(config, name) is not None]
    if foreign:
        raise UserError(
            f"--{foreign[0]} does not belong to {task.name}",
            "leave it out, or use the recipe of another task",
        )
    label = config.label_column or next(
        (name for name in LABEL_NAMES if name in train.features), None
    )
    given = getattr(config, f"{task.modality}_column")
    fitting = [
        name for name, feature in train.features.items() if _fits(feature, task) and name != label
    ]
    usual = [name for name in task.column_names if name in fitting]
    found = given or (usual[0] if usual else fitting[0] if len(fitting) == 1 else None)
    columns = {task.modality: found, "label": label}
    if config.text_pair_column:
        columns["text_pair"] = config.text_pair_column
    for ours, theirs in columns.items():
        flag = "--text_pair_column" if ours == "text_pair" else f"--{ours}_column"
        listed = ", ".join(train.column_names)
        if theirs is None:
            raise UserError(
                f"which column holds the {ours} is not clear", f"give {flag}; columns: {listed}"
            )
        if theirs not in train.features:
            error = unknown("column", theirs, train.column_names)
            raise UserError(error.message, f"check {flag}; {error.hint}")
        if ours != "label" and not _fits(train.features[theirs], task):
            raise UserError(
                f"the column {theirs!r} holds no {task.modality}",
                f"check {flag}; columns: {listed}",
            )
    if len(set(columns.values())) < len(columns):
        raise UserError(
            f"one column is named twice: {', '.join(map(str, columns.values()))}",
            "inputs are not labels",
        )
    return {ours: str(theirs) for ours, theirs in columns.items()}


def _fits(feature: object, task: Task) -> bool:
    if task.modality == "image":
        return isinstance(feature, Image)
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _require_countable(problem_type: ProblemType, config: DataConfig) -> None:
    """Raise UserError if examples are to be counted by class, and a row may have several or none."""
    if config.examples_per_class is not None and problem_type != "single_label_classification":
        raise UserError(
            f"examples a class can be counted for one class a row, not for {problem_type}",
            "leave out --examples_per_class; --max_train_samples limits all examples together",
        )


def _require_same_columns(
    splits: dict[str, Dataset], columns: dict[str, str], task: Task, target: Target
) -> None:
    """Raise UserError unless every split has the columns of the training split, of the same kinds."""
    known = coded_names(splits["train"].features[columns["label"]])
    for split, rows in splits.items():
        for ours, theirs in columns.items():
            if theirs not in rows.features or (
                ours != "label" and not _fits(rows.features[theirs], task)
            ):
                kind = (
                    f"{theirs!r} of labels"
                    if ours == "label"
                    else f"{theirs!r} of {task.modality}s"
                )
                raise UserError(
                    f"the split {split!r} has no column {kind}", "all splits need the same columns"
                )
        held = rows.features[columns["label"]]
        if not target.fits(held):
            raise UserError(
                f"the split {split!r} has other labels than the training split",
                f"each needs {target.needs}; for a test split without labels name another --test_split",
            )
        if coded_names(held) not in (None, known):
            raise UserError(
                f"the split {split!r} numbers its labels in another order",
                "all splits need the same labels",
            )


def _in_our_columns(rows: Dataset, split: str, columns: dict[str, str]) -> Dataset:
    """A split with its labels as they are stored, and ids; its other columns are dropped."""
    names = {theirs: ours for ours, theirs in columns.items()}
    rows = rows.select_columns(list(names)).rename_columns(names)
    return rows.add_column("id", [f"{split}/{row}" for row in range(len(rows))])


def _find_bad(stored: dict[str, Dataset], target: Target, config: DataConfig) -> dict[str, str]:
    """The reason by id of each row to leave out. Raises UserError if none is to be, or if there are too many."""
    known, found = coded_names(stored["train"].features["label"]), {}
    for split, rows in reversed(
        stored.items()
    ):  # a test split without labels is found before all else is read
        flaw = partial(target.flaw, rows.features["label"], known)
        found[split] = find_bad(split, rows, flaw, config.on_bad_example == "skip")
    bad = {row: reason for split in stored for row, reason in found[split].items()}
    if bad:
        total = sum(map(len, stored.values()))
        log.warning(
            "left out %d of %d examples, which cannot be used: %s", len(bad), total, first_of(bad)
        )
    return bad


def _encode(
    stored: dict[str, Dataset], bad: dict[str, str], column: str, target: Target
) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """The rows that are not bad, with labels as a model answers; the names of the labels, which `column` held."""
    good = {
        split: np.flatnonzero([row not in bad for row in rows["id"][:]])
        for split, rows in stored.items()
    }
    held = {
        split: rows.select_columns("label").select(good[split]) for split, rows in stored.items()
    }
    held = {split: rows.rename_columns({"label": column}) for split, rows in held.items()}
    names = target.names(held, column)
    encoded = {}
    for split, rows in stored.items():
        labels = dict(
            zip(good[split].tolist(), target.encode(held[split], column, names), strict=True)
        )
        whole = [labels.get(row) for row in range(len(rows))]
        # The column comes before the selection: a column that is added to selected rows copies all pictures.
        rows = rows.remove_columns("label").add_column(
            "label", whole, feature=target.feature(names)
        )
        encoded[split] = rows.select(good[split])
    return encoded, names


def _cut_missing(
    rows: dict[str, Dataset], config: DataConfig, target: Target
) -> dict[str, Dataset]:
    rows = dict(rows)
    if "test" not in rows:
        rows["train"], rows["test"] = _cut(rows["train"], TEST_SHARE, target)
        log.info("no test split: %d of the training rows are held out as one", len(rows["test"]))
    if len(rows["test"]) == 0:
        raise UserError(
            "too few examples to hold any out as a test split", "give more rows, or a test split"
        )
    enough = len(rows["train"]) * VALIDATION_SHARE >= FEWEST_VALIDATION_ROWS
    if "validation" not in rows and enough and config.examples_per_class is None:
        rows["train"], rows["validation"] = _cut(rows["train"], VALIDATION_SHARE, target)
    return rows


def _cut(rows: Dataset, share: float, target: Target) -> tuple[Dataset, Dataset]:
    kept, held = stratified_holdout(target.strata(rows["label"][:]), share, SPLIT_SEED)
    return rows.select(kept), rows.select(held)


def _limit(train: Dataset, config: DataConfig, seed: int, target: Target) -> Dataset:
    if config.examples_per_class is not None:
        train = train.select(examples_per_class(train["label"][:], config.examples_per_class, seed))
    if config.max_train_samples is not None:
        train = train.select(
            stratified_sample(target.strata(train["label"][:]), config.max_train_samples, seed)
        )
    return train
