"""A network with random weights, built from its config: the start of supervised pre-training."""

import json
from collections.abc import Sequence
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, set_seed
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES

from hf_transfer.config.source_model import SourceModelConfig
from hf_transfer.errors import UserError, unknown
from hf_transfer.models import locate
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import set_labels
from hf_transfer.models.layers import find_head
from hf_transfer.models.locate import Location, Provenance
from hf_transfer.tasks import Task, find_task

IMAGE_SIZE = 224  # of an image processor, where the model config names none
EXTRACTOR_SIZES = ("num_mel_bins", "max_length")  # of a feature extractor, as of its network
EXAMPLES = {
    "config_overrides": '{"depths": [2, 2]}',
    "processor_overrides": '{"size": {"height": 64, "width": 64}}',
}
# How transformers and torch refuse arguments of a config, a network or a processor.
REFUSALS = (
    *(AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError),
    *(StrictDataclassError, ZeroDivisionError),
)


def build_checkpoint(
    config: SourceModelConfig, task: Task | str, labels: Sequence[str], seed: int
) -> Checkpoint:
    """A network built from its config with random weights; every parameter is new.

    `task` is a row of TASKS or its name.

    Raises UserError for an unknown model type, one without a class for the task, JSON that cannot
    be read, and a processor that does not exist.
    """
    task = find_task(task)
    require_buildable(config, task)
    overrides = _parse_json("config_overrides", config.config_overrides)
    processor = _build_processor(task, config, overrides)
    if task.modality == "text":
        overrides.setdefault("vocab_size", len(processor))
        overrides.setdefault("pad_token_id", processor.pad_token_id)
    model_config = _make_config(config, overrides)
    model_config.architectures = [task.model_class_name(model_config)]
    set_labels(model_config, labels)
    model_config.problem_type = "single_label_classification"
    set_seed(seed)
    try:
        model = task.model_class.from_config(model_config)
    except REFUSALS as error:
        raise _wrong_override("config_overrides", config, error) from error
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


def require_buildable(config: SourceModelConfig, task: Task) -> None:
    """Raise UserError for what build_checkpoint would refuse, before any file is read."""
    overrides = _parse_json("config_overrides", config.config_overrides)
    _parse_json("processor_overrides", config.processor_overrides)
    name = str(config.model_type)
    if name not in transformers.CONFIG_MAPPING:
        raise unknown("model type", name, transformers.CONFIG_MAPPING.keys())
    default = AutoConfig.for_model(name)
    known = {*default.to_dict(), *default.attribute_map}
    for key in overrides:
        if key not in known:  # transformers would keep it aside
            raise unknown(f"key of the config of {name}", key, sorted(known))
    locate.require_modality(_make_config(config, overrides), task, name, trust_remote_code=False)
    if task.modality == "text" and config.tokenizer_name is None:
        raise UserError(
            "--tokenizer_name is missing",
            "a text model needs a tokenizer: a Hub id or a folder",
        )


def _make_config(config: SourceModelConfig, overrides: dict[str, Any]) -> Any:
    try:
        return AutoConfig.for_model(config.model_type, **overrides)
    except REFUSALS as error:
        raise _wrong_override("config_overrides", config, error) from error


def _wrong_override(flag: str, config: SourceModelConfig, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, KeyError):  # its text is the key alone
        reason = f"unknown {reason}"
    made = "processor" if flag == "processor_overrides" else f"{config.model_type} network"
    return UserError(
        f"--{flag} {getattr(config, flag)} gives no {made}: {reason}",
        f"see transformers' documentation of {config.model_type}",
    )


def _build_processor(task: Task, config: SourceModelConfig, overrides: dict[str, Any]) -> Any:
    """The tokenizer that the config names, or a processor of the sizes that the network takes."""
    if task.modality == "text":
        name = str(config.tokenizer_name)
        location = Location(Provenance(name), {"pretrained_model_name_or_path": name})
        return locate.load_processor(location, task.processor_class)
    key, default, settings = DEFAULT_PROCESSORS[task.modality](config, overrides)
    settings |= _parse_json("processor_overrides", config.processor_overrides)
    kind = settings.pop(key, default)
    if not hasattr(transformers, str(kind)):
        raise UserError(
            f"transformers has no {key.removesuffix('_type').replace('_', ' ')} {kind!r}",
            f"as {default}, in --processor_overrides",
        )
    try:
        with locate.quiet_transformers():
            return getattr(transformers, kind)(**settings)
    except REFUSALS as error:
        raise _wrong_override("processor_overrides", config, error) from error


def _image_settings(
    config: SourceModelConfig, overrides: dict[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    side = overrides.get("image_size", IMAGE_SIZE)
    height, width = side if isinstance(side, list) else (side, side)
    size = {"height": height, "width": width}
    return "image_processor_type", "ViTImageProcessor", {"size": size}


def _audio_settings(
    config: SourceModelConfig, overrides: dict[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    """The usual extractor of a model type, which takes what the network takes."""
    kind = FEATURE_EXTRACTOR_MAPPING_NAMES.get(str(config.model_type), "Wav2Vec2FeatureExtractor")
    settings = {name: overrides[name] for name in EXTRACTOR_SIZES if name in overrides}
    return "feature_extractor_type", kind, settings


# Modality -> key of the class, its default, and the settings that follow from the network's.
DEFAULT_PROCESSORS = {"image": _image_settings, "audio": _audio_settings}


def _parse_json(flag: str, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"--{flag} {text!r} is not a JSON object", f"as '{EXAMPLES[flag]}'")
    return content
