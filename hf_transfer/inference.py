"""A finished model, ready to be asked: transformers' own pipeline."""

from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoConfig, pipeline
from transformers.utils import cached_file, find_adapter_config_file

from hf_transfer.errors import UserError, one_line
from hf_transfer.evaluation.metrics import THRESHOLD
from hf_transfer.record import read_record
from hf_transfer.tasks import find_task, served_tasks


def load_pipeline(model: str) -> tuple[Any, str]:
    """The pipeline of a folder or Hub id, and the modality of its inputs. Raises UserError if it is no classifier."""
    try:
        if find_adapter_config_file(model):
            return _load_adapter(model)
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no model {model!r}: {one_line(error)}", "name the folder of a run, or a Hub id"
        ) from error
    made_for = (config.architectures or [""])[0]
    for task in map(find_task, served_tasks()):
        if task.covers(config) and made_for == task.model_class_name(config):
            return pipeline(
                task.name, model=str(Path(model)) if Path(model).exists() else model
            ), task.modality
    raise UserError(
        f"{model!r} ({made_for or config.model_type}) is no classifier",
        f"tasks: {', '.join(served_tasks())}; train a head first",
    )


def _load_adapter(model: str) -> tuple[Any, str]:
    """The pipeline of an adapter that a run has kept: its record names task and labels."""
    path = cached_file(model, "record.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise UserError(
            f"{model!r} is an adapter without a record.json",
            "name the folder of a run, or a Hub id",
        )
    record = read_record(Path(path))
    task, labels = find_task(record.task), record.dataset.labels
    settings = PeftConfig.from_pretrained(model)
    network = task.model_class.from_pretrained(
        settings.base_model_name_or_path,
        revision=settings.revision or "main",
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
        problem_type=record.problem_type,
        ignore_mismatched_sizes=True,  # the base model's own head is another
    )
    network.load_adapter(model)
    processor = {task.processor_argument: task.processor_class.from_pretrained(model)}
    return pipeline(task.name, model=network.eval(), **processor), task.modality


def classify(pipeline: Any, value: Any, top_k: int | None = None) -> list[tuple[str, str]]:
    """Pairs of a label and its figure: the `top_k` best, or the default of the problem type.

    Single label: the most probable. Multi-label: all above 0.5, or ("none", ""). Regression: the
    number. The pipeline itself knows by the model's `problem_type` whether logits become
    probabilities, and how.
    """
    config = pipeline.model.config
    answers = pipeline(value, top_k=config.num_labels)  # best first
    if config.problem_type == "regression":
        return [(answer["label"], f"{answer['score']:.6g}") for answer in answers]
    if top_k is None and config.problem_type == "multi_label_classification":
        chosen = [answer for answer in answers if answer["score"] > THRESHOLD]
    else:
        chosen = answers[: top_k or 1]
    return [(answer["label"], f"{answer['score']:.4f}") for answer in chosen] or [("none", "")]
