"""Flags: which task, for recipes that serve several."""

from dataclasses import dataclass

from hf_transfer.config.flag import flag


@dataclass(frozen=True)
class TaskConfig:
    """The task, by the name of a row of TASKS."""

    _argument_group_name = "task"

    task: str = flag(
        "image-classification",
        "Task: image-classification, text-classification or audio-classification.",
    )
