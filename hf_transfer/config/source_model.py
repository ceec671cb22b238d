"""Flags: which network to pre-train from random weights (recipes/pretrain.py)."""

from dataclasses import dataclass

from hf_transfer.config.flag import flag


@dataclass(frozen=True)
class SourceModelConfig:
    """The architecture of a source model."""

    _argument_group_name = "source model"

    model_type: str | None = flag(None, "Architecture, for example resnet, vit or bert.")
    config_overrides: str = flag("{}", "Arguments of the model's config class, as JSON.")
    processor_overrides: str = flag("{}", "Arguments of the image processor, as JSON.")
    tokenizer_name: str | None = flag(
        None, "Text only: model id on the Hub or folder of the tokenizer."
    )
