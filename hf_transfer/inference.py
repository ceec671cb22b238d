"""A finished model for predictions: transformers' own pipeline, or a Predictor for splits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig
from transformers import AutoConfig, pipeline
from transformers.utils import cached_file, find_adapter_config_file

from hf_transfer.data.encode import make_encoder
from hf_transfer.errors import UserError, one_line
from hf_transfer.evaluation.metrics import THRESHOLD
from hf_transfer.models.predictor import Predictor
from hf_transfer.record import ProblemType, read_record
from hf_transfer.tasks import Task, find_task, served_tasks


def load_pipeline(model: str) -> tuple[Any, str]:
    """The pipeline of a folder or Hub id, and the modality of its inputs.

    Raises UserError if there is no such model, or if it is no classifier.
    """
    with _readable(model):
        if find_adapter_config_file(model):
            network, processor, task = _load_adapter(model)
            parts = {"model": network, task.processor_argument: processor}
            return pipeline(task.name, **parts), task.modality
        task = _find_task(model)
    return pipeline(task.name, model=_location(model)), task.modality


def load_predictor(model: str, max_length: int | None = None) -> Predictor:
    """The Predictor of a folder or Hub id, in float32, its texts cut at `max_length` tokens.

    Raises UserError if there is no such model, or if it is no classifier.
    """
    with _readable(model):
        if find_adapter_config_file(model):
            network, processor, task = _load_adapter(model)
        else:
            task = _find_task(model)
            network = task.model_class.from_pretrained(_location(model), dtype=torch.float32).eval()
            processor = task.processor_class.from_pretrained(_location(model))
    encoder = make_encoder(task, processor, network.config, max_length)
    return Predictor(network, encoder, _problem_type(network.config))


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
    except (OSError, ValueError) as error:
        raise UserError(
            f"no model {model!r}: {one_line(error)}", "name the folder of a run, or a Hub id"
        ) from error


def _location(model: str) -> str:
    return str(Path(model)) if Path(model).exists() else model


def _find_task(model: str) -> Task:
    """The task of a plain checkpoint. Raises UserError if it is none whose data can be read."""
    config = AutoConfig.from_pretrained(model)
    architecture = (config.architectures or [""])[0]
    for task in map(find_task, served_tasks()):
        if task.covers(config) and architecture == task.model_class_name(config):
            return task
    raise UserError(
        f"{model!r} ({architecture or config.model_type}) is no classifier",
        f"tasks: {', '.join(served_tasks())}; train a head first",
    )


def _load_adapter(model: str) -> tuple[Any, Any, Task]:
    """The network of an adapter, its processor and its task, which the record of its run names."""
    path = cached_file(model, "record.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise UserError(
            f"{model!r} is an adapter without a record.json",
            "name the folder of a run, or a Hub id",
        )
    record = read_record(Path(path))
    task = find_task(record.task)
    names = dict(enumerate(record.dataset.labels))
    settings = PeftConfig.from_pretrained(model)
    network = task.model_class.from_pretrained(
        settings.base_model_name_or_path,
        revision=settings.revision or "main",
        id2label=names,
        label2id=dict(zip(names.values(), names, strict=True)),
        problem_type=record.problem_type,
        ignore_mismatched_sizes=True,  # the head of the base model is another
    )
    network.load_adapter(model)
    return network.eval(), task.processor_class.from_pretrained(model), task


def classify(pipeline: Any, value: Any, top_k: int | None = None) -> list[tuple[str, str]]:
    """Pairs of a label and its figure: the `top_k` best, or the default of the problem type.

    Single label: the most probable. Multi-label: all above 0.5, or ("none", ""). Regression: the
    number. The pipeline itself knows by the model's `problem_type` whether logits become
    probabilities, and how.
    """
    config = pipeline.model.config
    scored = pipeline(value, top_k=config.num_labels)  # best first
    digits = "{:.4f}"
    if config.problem_type == "regression":
        digits = "{:.6g}"
    elif top_k is None and config.problem_type == "multi_label_classification":
        scored = [each for each in scored if each["score"] > THRESHOLD]
    else:
        scored = scored[: top_k or 1]
    return [(each["label"], digits.format(each["score"])) for each in scored] or [("none", "")]
