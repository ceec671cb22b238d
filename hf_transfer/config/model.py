"""Flags: which checkpoint to start from."""

from dataclasses import dataclass

from hf_transfer.config.flag import flag


@dataclass(frozen=True)
class ModelConfig:
    """The pretrained checkpoint."""

    _argument_group_name = "model"

    model_name_or_path: str | None = flag(
        None, "Pretrained checkpoint: a model id on the Hub, a folder, or builtin:letters-resnet."
    )
    model_revision: str = flag("main", "Branch, tag or commit of the checkpoint.")
    trust_remote_code: bool = flag(
        False, "Run the Python code that the checkpoint's repository contains."
    )
    keep_head: bool = flag(
        False, "Keep the checkpoint's own head; its label names must be those of the dataset."
    )
