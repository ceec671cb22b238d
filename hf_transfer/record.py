"""The record of a run: typed facts, to JSON and back. Imports no heavy library."""

import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hf_transfer.errors import UserError, one_line

SCHEMA = 1

# The names of transformers.
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
T = TypeVar("T")

# A field without a default is a key of every record. A field with a default is left out of the
# JSON where it has that default: it does not apply, or an earlier version did not write it.


@dataclass(frozen=True)
class Estimate:
    """A measured value; its interval `low` to `high` at confidence `level`; from `n` examples."""

    value: float
    low: float
    high: float
    level: float
    n: int


@dataclass(frozen=True)
class BaseModelFacts:
    """The checkpoint that a run starts from; `revision` is a commit, None if not on the Hub."""

    id: str
    revision: str | None
    license: str | None


@dataclass(frozen=True)
class SplitSizes:
    """Number of examples of each split."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class DroppedExample:
    """An example that was left out because it cannot be used: split/row, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class DatasetFacts:
    """The dataset; `revision` is a commit, None for one that is not on the Hub.

    `labels` are label names, of a regression the name of its number. `cut` names the splits that
    the source lacks and that were cut from its training rows. `columns` maps our column names to
    those of the source, `image_kinds` the kinds of images that Pillow alone reads otherwise
    (data/pixels.py) to their number.
    """

    id: str
    revision: str | None
    license: str | None
    description: str | None
    fingerprint: str
    labels: list[str]
    splits: SplitSizes
    dropped: list[DroppedExample]
    cut: list[str]
    columns: dict[str, str] | None = None
    image_kinds: dict[str, int] | None = None


@dataclass(frozen=True)
class Trial:
    """Result of a strategy on `n` held-out rows of the training split; higher scores are better.

    `gain` is the mean difference of the scores to those of the first trial on the same rows, with
    its standard error; neither for the first trial, nor where too few rows can be compared.
    """

    strategy: str
    score: float
    n: int
    seconds: float
    gain: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class StrategyFacts:
    """The strategy that was requested, the one that was used, why, and the trials behind it."""

    requested: str
    used: str
    reasons: list[str]
    pooling: str | None = None
    evidence: list[Trial] | None = None


@dataclass(frozen=True)
class LoggedStep:
    """Losses, accuracy and learning rate that were logged after a training step."""

    step: int
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None


@dataclass(frozen=True)
class SkippedStep:
    """A step whose loss or gradient was not finite, and the ids of its examples."""

    step: int
    ids: list[str]


@dataclass(frozen=True)
class Candidate:
    """Weights that a phase could end with, and their value of the metric on validation."""

    name: str
    value: float


@dataclass(frozen=True)
class LinearProbeFacts:
    """The L2 strength of a head that was solved as a linear probe, and the factor `penalty` in it.

    `cross_validated` is False where the strength is fixed, because nothing could be held out.
    """

    strength: float
    penalty: float | None = None
    cross_validated: bool | None = None


@dataclass(frozen=True)
class PhaseFacts:
    """One phase of training: what learned, for how long, from which cached activations.

    A phase whose head is solved has `solved`, no steps and no history. A phase in steps has `loss`,
    `batch_size` (examples of all processes in a step), `skipped_steps`, and in `resumed_at` the
    steps from which it was resumed; `kept` names the weights that it ended with where `candidates`
    were compared. `augmentation` is set where the phase learned from augmented images.
    """

    name: str
    trainable_parameters: int
    epochs: float
    steps: int
    best_step: int | None
    seconds: float
    frozen_passes: int
    cache: str
    cached_bytes: int
    history: list[LoggedStep]
    frozen_seconds: float | None = None
    loss: str | None = None
    batch_size: int | None = None
    kept: str | None = None
    candidates: list[Candidate] | None = None
    skipped_steps: list[SkippedStep] | None = None
    resumed_at: list[int] | None = None
    augmentation: str | None = None
    solved: LinearProbeFacts | None = None


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of one class or label, with `n` examples."""

    label: str
    n: int
    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class ThresholdFacts:
    """The probability above which each label is predicted, and which rows it was `chosen_on`.

    `plain` has the metrics that depend on it as they are with 0.5 for all labels.
    """

    values: dict[str, float]
    chosen_on: str
    plain: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the model and of each baseline on a split of `n` examples, by name.

    `confusion` has the cells [truth, prediction, count] of a confusion matrix that are not zero,
    of one class per row alone; `points` has pairs [truth, prediction], of a regression alone, which
    has no `per_class`. `thresholds` are set where those of several labels were tuned.
    """

    split: str
    n: int
    metrics: dict[str, Estimate]
    per_class: list[ClassMetrics]
    baselines: dict[str, dict[str, Estimate]]
    confusion: list[list[int]] | None = None
    points: list[list[float]] | None = None
    thresholds: ThresholdFacts | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds of each part of a run; they do not overlap."""

    load_s: float
    frozen_s: float
    train_s: float
    evaluate_s: float
    total_s: float
    choose_s: float | None = None


@dataclass(frozen=True)
class ModelFacts:
    """The trained network and its hyperparameters.

    `fixed_parameters` never learn. `files` and `adapter` (a method of PEFT, None for a plain
    checkpoint) are set once the run is saved. `padding` is the side of a text on which padding
    changes no answer, "none" if there is none.
    """

    class_: str
    architecture: str
    parameters: int
    new_parameters: list[str]
    hyperparameters: dict[str, Any]
    fixed_parameters: list[str] | None = None
    files: list[str] | None = None
    adapter: str | None = ""
    padding: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """Name, licence and language of the model, None where not given; set when it is saved.

    `location` is what from_pretrained takes where the model is not on the Hub: the output folder as
    it was given, or "." if that would name a place of the machine.
    """

    name: str = ""
    license: str | None = ""
    language: str | None = ""
    location: str | None = None


@dataclass(frozen=True)
class RunRecord:
    """All facts of a run, as they are in record.json (DESIGN, section 4)."""

    task: str
    problem_type: ProblemType
    seed: int
    base_model: BaseModelFacts
    dataset: DatasetFacts
    strategy: StrategyFacts
    phases: list[PhaseFacts]
    evaluation: Evaluation
    timings: Timings
    peak_memory_bytes: int
    environment: dict[str, Any]
    model: ModelFacts
    card: CardFacts

    def to_json_string(self) -> str:
        """The record as indented JSON, its keys in a stable order."""
        facts = {"schema": SCHEMA, **to_json(self)}
        return json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The test metrics by name."""
        return self.evaluation.metrics

    @property
    def baselines(self) -> dict[str, dict[str, Estimate]]:
        """The metrics of each baseline by name."""
        return self.evaluation.baselines


def read_record(path: Path) -> RunRecord:
    """The record in a `record.json`; raises UserError if it is damaged or has another schema."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["schema"] != SCHEMA:
            raise ValueError(f"schema {facts['schema']}, this version reads {SCHEMA}")
        return from_json(RunRecord, facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} is no record of this version: {one_line(error)}",
            "run the recipe again",
        ) from error


def to_json(value: Any) -> Any:
    """A dataclass of facts as the dicts and lists that json.dumps takes."""
    if is_dataclass(value):
        facts = {}
        for each in fields(value):
            own = getattr(value, each.name)
            if own != each.default:
                facts[_key(each.name)] = to_json(own)
        return facts
    if isinstance(value, list):
        return list(map(to_json, value))
    if isinstance(value, dict):
        return dict(zip(value, map(to_json, value.values()), strict=True))
    return value


def from_json(kind: type[T], value: Any) -> T:
    """A dataclass of facts from what json.loads returns.

    Keys that it does not have are ignored: a newer version wrote them. Raises TypeError if one
    that it needs is missing.
    """
    return _convert(kind, value)


def _convert(kind: Any, value: Any) -> Any:
    """A value of an annotation of this module: a dataclass, a list, a dict, X | None or plain."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        known = [name for name in hints if _key(name) in value]
        return kind(**{name: _convert(hints[name], value[_key(name)]) for name in known})
    origin = get_origin(kind)
    arguments = get_args(kind)
    if value is None:
        return None
    if origin is UnionType:
        return _convert(arguments[0], value)
    if origin is list:
        return [_convert(arguments[0], each) for each in value]
    if origin is dict:
        return {key: _convert(arguments[1], each) for key, each in value.items()}
    return value


def _key(name: str) -> str:
    """The JSON key of a field: its name, less the underscore after a keyword (`class_`)."""
    return name.rstrip("_")
