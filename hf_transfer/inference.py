"""A finished model from a folder or the Hub, and its predictions as names and probabilities."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import safetensors
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import AutoConfig
from transformers.utils import cached_file, find_adapter_config_file

from hf_transfer.config.model import ModelConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.inputs import with_zeros
from hf_transfer.data.token_labels import IGNORED, split_words
from hf_transfer.errors import UserError, one_line
from hf_transfer.evaluation.metrics import SCORING
from hf_transfer.hub_repository import find_repository
from hf_transfer.models.audio_input import read_input
from hf_transfer.models.locate import (
    Location,
    Provenance,
    load_processor,
    locate,
    quiet_transformers,
)
from hf_transfer.models.predictor import Predictor
from hf_transfer.models.thresholds import PLAIN
from hf_transfer.models.unpadded import logits_of
from hf_transfer.record import ProblemType, RunRecord, read_record
from hf_transfer.tasks import TASKS, Task, find_task

log = logging.getLogger(__name__)

BATCH_SIZE = 32
# "image": a PIL image; "audio": bytes or path; or "text" (where words have labels, also a list) and
# perhaps "text_pair"
Row = Mapping[str, Any]
# Pairs of a label and its figure, best first; where words have labels, after the word.
Answer = list[tuple[str, ...]]


@dataclass(frozen=True)
class FinishedModel:
    """A finished model, its task, and what its record tells of the data that it was trained on."""

    predictor: Predictor
    task: Task
    labels: tuple[str, ...]  # label names
    columns: Mapping[str, str]  # our column name -> the dataset's; empty without a record

    @property
    def reads_pairs(self) -> bool:
        """Whether it was trained on pairs of texts."""
        return "text_pair" in self.columns


def load_finished(model: str, max_length: float | None = None) -> FinishedModel:
    """The finished model of a folder, a Hub id or builtin:NAME, in float32.

    Texts are truncated at `max_length` tokens, sounds at `max_length` seconds. Raises UserError if
    there is no such model, it cannot be read, or it is no classifier.
    """
    found = _find(model)
    with _readable(model), quiet_transformers():
        record = _find_record(found)
        if find_adapter_config_file(**_named(found, "model_id")):
            network, task = _load_adapter(model, found, record)
        else:
            task = _find_task(model, found)
            network = task.model_class.from_pretrained(**found, dtype=torch.float32)
    processor = load_processor(Location(Provenance(model), found), task.processor_class)
    config = network.config
    takes = read_input(network, processor)
    encoder = make_encoder(task, processor, config, max_length, takes)
    return FinishedModel(
        predictor=Predictor(network.eval(), encoder, _problem_type(config)),
        task=task,
        labels=tuple(map(config.id2label.get, range(config.num_labels))),
        columns=(record.dataset.columns if record else None) or {},
    )


def load_predictor(model: str, max_length: float | None = None) -> Predictor:
    """The Predictor of a finished model; see load_finished."""
    return load_finished(model, max_length).predictor


def answers(
    finished: FinishedModel, rows: Iterable[Row], top_k: int | None = None
) -> Iterator[Answer]:
    """The answer to each row: the `top_k` best labels, or the default of the problem type.

    Single label: the most probable. Multi-label: all above their thresholds (0.5
    unless tuned), or ("none", ""). Regression: the
    number. Words with labels: those of every word; a text is split into words.
    """
    remaining = map(_with_words, rows) if finished.task.labels_words else iter(rows)
    while batch := list(itertools.islice(remaining, BATCH_SIZE)):
        for row, outputs in zip(batch, _outputs(finished.predictor, batch), strict=True):
            if finished.task.labels_words:
                yield _of_each_word(row["text"], outputs, finished, top_k or 1)
            else:
                yield _in_words(outputs, finished, top_k)


def _with_words(row: Row) -> Row:
    """The row with its text as a list of words. Raises UserError if it has none."""
    text = row["text"]
    words = split_words(text) if isinstance(text, str) else text
    if not words or None in words:
        raise UserError(f"there is no word in {str(text)[:40]!r}", "fix it or leave it out")
    return {**row, "text": words}


@torch.inference_mode()
def _outputs(predictor: Predictor, rows: list[Row]) -> Sequence[np.ndarray]:
    """Probabilities (rows, labels), or numbers (rows,), computed as in the evaluation.

    Where words have labels, an array (words, labels) for each row.
    """
    encoder = predictor.encoder
    labelled = list(map(with_zeros, rows))
    has_words = isinstance(rows[0].get("text"), list)
    if encoder.by_length:
        with _no_progress_bar():
            labelled = list(encoder.rows(Dataset.from_list(labelled)))
    batch = encoder.collate(labelled)
    answered = batch.pop("labels") != IGNORED
    device = PartialState().device
    model = predictor.model.to(device)
    logits = logits_of(model, {name: tensor.to(device) for name, tensor in batch.items()})
    outputs = SCORING[predictor.problem_type].activation(logits.double().cpu().numpy())
    if not has_words:
        return list(outputs)
    ends = np.cumsum([len(row["text"]) for row in rows])
    return np.split(outputs[answered.numpy()], ends[:-1])


def _of_each_word(
    words: Sequence[str], outputs: np.ndarray, finished: FinishedModel, top_k: int
) -> Answer:
    """The best labels of each word, one after another; a label stands behind its word."""
    found: Answer = []
    for word, own in zip(words, outputs, strict=True):
        for label in np.argsort(-own, kind="stable")[:top_k]:
            found.append((word, finished.labels[label], f"{own[label]:.4f}"))
    return found


def _in_words(outputs: np.ndarray, finished: FinishedModel, top_k: int | None) -> Answer:
    problem_type = finished.predictor.problem_type
    if problem_type == "regression":
        return [(finished.labels[0], f"{float(outputs):.6g}")]
    best = np.argsort(-outputs, kind="stable")
    if top_k is None and problem_type == "multi_label_classification":
        thresholds = finished.predictor.thresholds
        best = best[(outputs > (PLAIN if thresholds is None else thresholds))[best]]
    else:
        best = best[: top_k or 1]
    return [(finished.labels[label], f"{outputs[label]:.4f}") for label in best] or [("none", "")]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    was_hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_hidden:
            datasets.enable_progress_bars()


# --- loading ---


def _find(model: str) -> dict[str, Any]:
    """The arguments by which from_pretrained finds a model. Raises UserError if there is none."""
    if model.startswith("builtin:"):
        return locate(ModelConfig(model)).arguments
    path = Path(model).expanduser()
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(path)}
    if path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise UserError(f"no model {model!r}: no such folder", "name the folder of a run")
    found = find_repository(model, "model")
    return {"pretrained_model_name_or_path": found.id, "revision": found.revision}


def _named(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments of a function that calls the first one by another name."""
    others = {key: value for key, value in found.items() if key == "revision"}
    return {name: found["pretrained_model_name_or_path"], **others}


def _find_record(found: Mapping[str, Any]) -> RunRecord | None:
    arguments = _named(found, "path_or_repo_id")
    path = cached_file(
        filename="record.json", _raise_exceptions_for_missing_entries=False, **arguments
    )
    if path is None:
        return None
    try:
        return read_record(Path(path))
    except UserError as error:
        log.warning("%s: which columns it was trained on is not known", error.message)
        return None


def _problem_type(config: Any) -> ProblemType:
    """That of a model config; where it has none, what transformers takes it for when it trains."""
    if config.problem_type:
        return cast(ProblemType, config.problem_type)
    return "regression" if config.num_labels == 1 else "single_label_classification"


@contextmanager
def _readable(model: str) -> Iterator[None]:
    """Turn the errors of transformers for what is no model into one UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(
            f"no model {model!r}: {one_line(error)}", "name the folder of a run, or a Hub id"
        ) from error


def _find_task(model: str, found: Mapping[str, Any]) -> Task:
    """The task of a plain checkpoint. Raises UserError if it is none whose data can be read."""
    config = AutoConfig.from_pretrained(**found)
    architecture = (config.architectures or [""])[0]
    for task in TASKS.values():
        if task.covers(config) and architecture == task.model_class_name(config):
            return task
    raise UserError(
        f"{model!r} ({architecture or config.model_type}) is no classifier",
        f"tasks: {', '.join(TASKS)}; train a head first",
    )


def _load_adapter(
    model: str, found: Mapping[str, Any], record: RunRecord | None
) -> tuple[Any, Task]:
    """The network of an adapter, merged into its base, and the task that its record names."""
    if record is None:
        raise UserError(
            f"{model!r} is an adapter without a record.json",
            "name the folder of a run, or a Hub id",
        )
    task = find_task(record.task)
    names = dict(enumerate(record.dataset.labels))
    settings = PeftConfig.from_pretrained(**found)
    base = task.model_class.from_pretrained(
        settings.base_model_name_or_path,
        revision=settings.revision or "main",
        id2label=names,
        label2id=dict(zip(names.values(), names, strict=True)),
        problem_type=record.problem_type,
        ignore_mismatched_sizes=True,  # the head of the base model is another
        dtype=torch.float32,
    )
    # Not base.load_adapter: with transformers 5.17 it leaves the head as it was drawn.
    adapted = PeftModel.from_pretrained(base, **_named(found, "model_id"))
    return adapted.merge_and_unload(), task
