"""A finished model, ready to be asked: transformers' own pipeline."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, pipeline

from hf_transfer.errors import UserError, one_line
from hf_transfer.tasks import TASKS


def load_pipeline(model: str) -> tuple[Any, str]:
    """The pipeline of a folder or Hub id, and the modality of its inputs. Raises UserError if it is no classifier."""
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"no model {model!r}: {one_line(error)}", "name the folder of a run, or a Hub id") from error
    made_for = (config.architectures or [""])[0]
    for task in TASKS.values():
        if task.covers(config) and made_for == task.model_class_name(config):
            return pipeline(task.name, model=str(Path(model)) if Path(model).exists() else model), task.modality
    raise UserError(
        f"{model!r} ({made_for or config.model_type}) is no classifier",
        f"tasks: {', '.join(TASKS)}; train a head first",
    )
