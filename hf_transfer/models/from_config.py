"""A network with random weights, built from its config: the start of supervised pre-training."""

import json
from collections.abc import Sequence
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, set_seed

from hf_transfer.config.source_model import SourceModelConfig
from hf_transfer.errors import UserError, one_line, unknown
from hf_transfer.models import locate
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import set_labels
from hf_transfer.models.layers import find_head
from hf_transfer.models.locate import Location, Provenance
from hf_transfer.tasks import Task, find_task

IMAGE_SIZE = 224  # of an image processor, where the model config names none


def build_checkpoint(
    config: SourceModelConfig, task: Task | str, labels: Sequence[str], seed: int
) -> Checkpoint:
    """A network built from its config with random weights; every parameter is new.

    `task` is a row of TASKS or its name.

    Raises UserError for an unknown model type, one without a class for the task, JSON that cannot
    be read, and a processor that does not exist.
    """
    task = find_task(task)
    overrides = _parse_json(config.config_overrides)
    processor_settings = _parse_json(config.processor_overrides)
    if config.model_type not in transformers.CONFIG_MAPPING:
        raise unknown("model type", str(config.model_type), transformers.CONFIG_MAPPING.keys())
    _require_known(config, overrides)
    processor = _build_processor(task, config, processor_settings, overrides)
    if task.modality == "text":
        overrides.setdefault("vocab_size", len(processor))
        overrides.setdefault("pad_token_id", processor.pad_token_id)
    try:
        model_config = AutoConfig.for_model(config.model_type, **overrides)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise _wrong_override(config, error) from error
    locate.require_modality(model_config, task, str(config.model_type), trust_remote_code=False)
    model_config.architectures = [task.model_class_name(model_config)]
    set_labels(model_config, labels)
    model_config.problem_type = "single_label_classification"
    set_seed(seed)
    try:
        model = task.model_class.from_config(model_config)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise _wrong_override(config, error) from error
    everything = tuple(dict(model.named_parameters()))
    return Checkpoint(
        model=model,
        task=task,
        labels=tuple(labels),
        head=tuple(filter(find_head(model).__contains__, everything)),
        new_parameters=everything,
        dropped_parameters=(),
        provenance=Provenance(f"none ({config.model_type} from its config)"),
        read_processor=lambda: processor,
    )


def _require_known(config: SourceModelConfig, overrides: dict[str, Any]) -> None:
    """Raise UserError for a key that the config does not have: transformers would keep it aside."""
    default = AutoConfig.for_model(config.model_type)
    known = {*default.to_dict(), *default.attribute_map}
    for key in overrides:
        if key not in known:
            raise unknown(f"key of the config of {config.model_type}", key, sorted(known))


def _wrong_override(config: SourceModelConfig, error: Exception) -> UserError:
    return UserError(
        f"--config_overrides {config.config_overrides} gives no {config.model_type}: "
        f"{' '.join(str(error).split())[:200]}",
        f"see transformers' documentation of the config of {config.model_type}",
    )


def _build_processor(
    task: Task, config: SourceModelConfig, settings: dict[str, Any], overrides: dict[str, Any]
) -> Any:
    """The tokenizer that the config names, or an image processor of the model's image size."""
    if task.modality == "text":
        name = config.tokenizer_name
        if name is None:
            raise UserError(
                "--tokenizer_name is missing",
                "a text model needs a tokenizer: a Hub id or a folder",
            )
        location = Location(Provenance(name), {"pretrained_model_name_or_path": name})
        return locate.load_processor(location, task.processor_class)
    side = overrides.get("image_size", IMAGE_SIZE)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": side, "width": side},
        **settings,
    }
    kind = settings.pop("image_processor_type")
    if not hasattr(transformers, kind):
        raise UserError(
            f"transformers has no image processor {kind!r}",
            "as ViTImageProcessor, in --processor_overrides",
        )
    with locate.quiet_transformers():
        return getattr(transformers, kind)(**settings)


def _parse_json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{text!r} is not a JSON object: {one_line(error)}", 'as {"depths": [2, 2]}'
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{text!r} is not a JSON object", 'as {"depths": [2, 2]}')
    return content
