"""Load a pretrained network through the AutoModel classes, with a head for the labels at hand."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from transformers import AutoConfig, set_seed
from transformers.utils import find_adapter_config_file

import hf_transfer
from hf_transfer.config.source_model import SourceModelConfig
from hf_transfer.errors import UserError, one_line, unknown
from hf_transfer.hub_repository import card_license, find_repository
from hf_transfer.models.adapters import Adapter
from hf_transfer.models.head import (
    find_linear_head,
    find_output_layer,
    renew,
    require_labels,
    require_only_head_new,
    set_labels,
)
from hf_transfer.models.layers import LayerMap, find_head, layer_map
from hf_transfer.models.mean_pooling_layer import MEAN_OPTIONS, find_mean_layer
from hf_transfer.record import ProblemType
from hf_transfer.tasks import TASKS, Task, model_kinds, served_tasks

log = logging.getLogger(__name__)

ASSETS = Path(hf_transfer.__file__).parent / "assets"


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from: `revision` is a commit for a Hub id, None otherwise.

    `location` is what from_pretrained takes: a Hub id, or a path, which is in no record.
    """

    id: str
    revision: str | None = None
    license: str | None = None
    location: str = ""


@dataclass(frozen=True, eq=False)  # a Checkpoint is equal to itself alone, and hashable
class Checkpoint:
    """A model for a task, its processor, where it comes from, and what of it is new.

    `new_parameters` names exactly the parameters that the checkpoint could not give, `dropped_parameters` the tensors
    of the checkpoint that the model has no place for, and `head` what learns when the head alone learns. Those called
    `fixed` were put in, as a part of how the head reads, and never learn.
    """

    model: Any
    task: Task
    labels: tuple[str, ...]
    head: tuple[str, ...]
    new_parameters: tuple[str, ...]
    dropped_parameters: tuple[str, ...]
    provenance: Provenance
    read_processor: Callable[[], Any]
    seconds: float = 0.0  # that loading took
    adapter: Adapter | None = None  # that the model has learned with, and has been merged into it
    fixed: tuple[str, ...] = ()

    # Computed once for a Checkpoint: they read the source code of the model, or build another model
    # to compare it with. `dataclasses.replace` gives a Checkpoint that computes its own.

    @cached_property
    def layers(self) -> LayerMap:
        """The stages of the network as it was pretrained; what is fixed counts as head."""
        return layer_map(self.model, self.head, self.fixed)

    @cached_property
    def output_layer(self) -> frozenset[str]:
        """The names of the parameters whose shape depends on the number of labels."""
        return frozenset(find_output_layer(self.model))

    @cached_property
    def linear_head(self) -> str | None:
        """The path of the output layer if it is one linear layer, else None."""
        return find_linear_head(self.model, self.output_layer)

    @property
    def reads_mean(self) -> bool:
        """Whether the head reads the mean over tokens: by an option of its class, or by a layer that was put in."""
        return bool(self.fixed) or any(
            getattr(self.model.config, name, None) == MEAN_OPTIONS[name] for name in MEAN_OPTIONS
        )

    @property
    def processor(self) -> Any:
        """The image processor or tokenizer; loaded when first asked for."""
        return self.read_processor()


def load_checkpoint(
    name: str,
    task: Task,
    labels: Sequence[str],
    revision: str = "main",
    trust_remote_code: bool = False,
    seed: int = 0,
    problem_type: ProblemType = "single_label_classification",
    keep_head: bool = False,
) -> Checkpoint:
    """The checkpoint `name` (Hub id, folder, builtin:NAME) with a new head for `labels`, in 32 bits.

    The head is new even where the checkpoint's has the same size: another task's weights are no start. With
    `keep_head` it is kept, if its label names are the same in the same order. Raises UserError if the checkpoint
    cannot be had, is of another modality, or lacks parameters other than the head's. A layer that a run of ours
    put in, for the head to read the mean, is known again by its weights: it is `fixed`.
    """
    began = time.perf_counter()
    require_labels(labels, problem_type)
    provenance, location, config = read_config(name, task, revision, trust_remote_code)
    if keep_head:
        _require_same_labels(config, labels, provenance)
    same_size = config.num_labels == len(labels)
    set_labels(config, labels)
    config.problem_type = problem_type
    set_seed(seed)
    model, report = _load_model(location, config, task, provenance)
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    output_layer = find_output_layer(model) if same_size and not keep_head else set()
    renew(model, output_layer)
    new = set(report["missing_keys"]) | mismatched | output_layer
    require_only_head_new(model, new, find_head(model), provenance.id)
    _require_head(model, new, keep_head, provenance)
    dropped = (
        set(report["unexpected_keys"]) | mismatched | (output_layer - set(report["missing_keys"]))
    )
    log.info("%s: %s; %s", provenance.id, _summary("new", new), _summary("dropped", dropped))
    ordered = tuple(name for name, _ in model.named_parameters() if name in new)
    head = ordered or tuple(sorted(find_output_layer(model)))
    fixed = find_mean_layer(model, head)
    if fixed:
        log.info(
            "%s: the head reads the mean; what was put in for it stays as it is", provenance.id
        )
    processor = cache(lambda: _load_processor(location, task, provenance))
    found = Checkpoint(
        model, task, tuple(labels), head, ordered, tuple(sorted(dropped)), provenance, processor
    )
    return replace(found, seconds=time.perf_counter() - began, fixed=fixed)


def read_config(
    name: str, task: Task, revision: str, trust_remote_code: bool
) -> tuple[Provenance, dict[str, Any], Any]:
    """Where a checkpoint comes from, the arguments with which from_pretrained finds it, and its config.

    No weight is read. Raises UserError if it does not exist or was not pretrained on the task's kind of input.
    """
    provenance, location = _locate(name, revision)
    location["trust_remote_code"] = trust_remote_code
    config = _load_config(location, provenance)
    _require_modality(config, task, provenance, trust_remote_code)
    return provenance, location, config


def randomized(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """The same architecture and processor with nothing transferred: every parameter that is not fixed is new."""
    set_seed(seed)
    model = type(checkpoint.model)._from_config(checkpoint.model.config)
    fixed = {name: checkpoint.model.get_parameter(name) for name in checkpoint.fixed}
    model.load_state_dict(fixed, strict=False)
    everything = tuple(name for name, _ in model.named_parameters() if name not in fixed)
    return replace(checkpoint, model=model, new_parameters=everything, dropped_parameters=())


def build_checkpoint(
    config: SourceModelConfig, task: Task, labels: Sequence[str], seed: int
) -> Checkpoint:
    """A network made from its config with random weights: the start of supervised pre-training."""
    overrides, settings = _as_json(config.config_overrides), _as_json(config.processor_overrides)
    known = list(transformers.CONFIG_MAPPING.keys())
    if config.model_type not in known:
        raise unknown("model type", str(config.model_type), known)
    processor = _build_processor(task, config, settings, overrides)
    if task.modality == "text":
        overrides.setdefault("vocab_size", len(processor))
        overrides.setdefault("pad_token_id", processor.pad_token_id)
    model_config = AutoConfig.for_model(config.model_type, **overrides)
    _require_modality(
        model_config, task, Provenance(str(config.model_type)), trust_remote_code=False
    )
    model_config.architectures = [task.model_class_name(model_config)]
    set_labels(model_config, labels)
    model_config.problem_type = "single_label_classification"
    set_seed(seed)
    model = task.model_class.from_config(model_config)
    everything = tuple(name for name, _ in model.named_parameters())
    origin = Provenance(f"none ({config.model_type} from its config)")
    head = tuple(name for name in everything if name in find_head(model))
    return Checkpoint(model, task, tuple(labels), head, everything, (), origin, lambda: processor)


def _build_processor(
    task: Task, config: SourceModelConfig, settings: dict[str, Any], overrides: dict[str, Any]
) -> Any:
    if task.modality == "text":
        if config.tokenizer_name is None:
            raise UserError(
                "--tokenizer_name is missing",
                "a text model needs a tokenizer: a Hub id or a folder",
            )
        location = {"pretrained_model_name_or_path": config.tokenizer_name}
        return _load_processor(location, task, Provenance(config.tokenizer_name))
    side = overrides.get("image_size", 224)
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
    with _quiet():
        return getattr(transformers, kind)(**settings)


def _as_json(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise UserError(
            f"{text!r} is not a JSON object: {one_line(error)}", 'as {"depths": [2, 2]}'
        ) from error


def _locate(name: str, revision: str) -> tuple[Provenance, dict[str, Any]]:
    """Where a checkpoint comes from, and the arguments with which from_pretrained finds it."""
    if name.startswith("builtin:"):
        short = name.removeprefix("builtin:")
        shipped = sorted(path.name for path in ASSETS.iterdir() if (path / "config.json").is_file())
        if short not in shipped:
            raise unknown("builtin checkpoint", short, shipped)
        folder = ASSETS / short
        origin = Provenance(name, None, card_license(folder), str(folder))
        return origin, {"pretrained_model_name_or_path": str(folder)}
    path = Path(name).expanduser()
    if path.is_dir():
        _require_no_adapter(name, str(path), None)
        if not (path / "config.json").is_file():
            raise UserError(
                f"the folder {name!r} has no config.json",
                "name a folder written by save_pretrained",
            )
        origin = Provenance(
            f"local:{path.resolve().name}", None, card_license(path), str(path.resolve())
        )
        return origin, {"pretrained_model_name_or_path": str(path)}
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(
            f"no checkpoint folder {name!r}",
            "check --model_name_or_path; a Hub id looks like user/name",
        )
    found = find_repository(name, "model", revision)
    _require_no_adapter(name, found.id, found.revision)
    origin = Provenance(found.id, found.revision, found.license, found.id)
    return origin, {"pretrained_model_name_or_path": found.id, "revision": found.revision}


def _require_no_adapter(name: str, location: str, revision: str | None) -> None:
    """Raise UserError for an adapter: transformers would load it into its base model, and save it alone again."""
    if find_adapter_config_file(location, revision=revision):
        raise UserError(
            f"{name!r} is an adapter, not a whole model",
            "start from its base model; to go on from a run of ours, make it without --keep_adapter",
        )


def _load_processor(location: dict[str, Any], task: Task, provenance: Provenance) -> Any:
    with _quiet():
        try:
            return task.processor_class.from_pretrained(**location)
        except ImportError as error:  # transformers 5.17 reads pictures with torchvision only
            raise UserError(
                one_line(error), "install it, or the versions of our constraints.txt"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"the checkpoint {provenance.id!r} has no processor: {one_line(error)}",
                "its folder needs preprocessor_config.json or the tokenizer's files",
            ) from error


def _load_config(location: dict[str, Any], provenance: Provenance) -> Any:
    try:
        return AutoConfig.from_pretrained(**location)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read the config of {provenance.id!r}: {one_line(error)}",
            "it must be a transformers checkpoint; --trust_remote_code runs the code that some of them bring",
        ) from error


def _require_modality(
    config: Any, task: Task, provenance: Provenance, trust_remote_code: bool
) -> None:
    """Raise UserError before any weight is read if the network is not of the task's kind."""
    brings = getattr(config, "auto_map", None) or {}
    if task.covers(config) or (trust_remote_code and task.auto_class in brings):
        return
    whose = f"{provenance.id!r} ({config.model_type})"
    others = [other for other in TASKS.values() if other.covers(config)]
    modalities = sorted({other.modality for other in others})
    if others and task.modality not in modalities:
        served = [other.name for other in others if other.name in served_tasks()]
        raise UserError(
            f"{whose} was pretrained on {' and '.join(modalities)}, {task.name} needs {task.modality}",
            "start from a checkpoint of the same kind of input"
            + "".join(f", or use {name}" for name in served),
        )
    kinds = model_kinds(config)
    raise UserError(
        f"{whose} has no class for {task.name}, it has {', '.join(kinds) if kinds else 'none for any task'}",
        f"start from {task.modality} that {task.auto_class} supports",
    )


def _require_same_labels(config: Any, labels: Sequence[str], provenance: Provenance) -> None:
    old = [config.id2label.get(number) for number in range(config.num_labels)]
    if old != list(labels):
        differs = next(
            (f"{a!r} in place of {b!r}" for a, b in zip(old, labels, strict=False) if a != b), None
        )
        raise UserError(
            f"--keep_head: the labels of {provenance.id!r} are not the dataset's: "
            + (differs or f"{len(old)} in place of {len(labels)}"),
            "leave out --keep_head to start with a new head",
        )


def _require_head(model: Any, new: set[str], keep_head: bool, provenance: Provenance) -> None:
    if keep_head and new:
        raise UserError(
            f"--keep_head: {provenance.id!r} brings no head, {_summary('new', new)}",
            "leave out --keep_head",
        )
    if not keep_head and not new:
        raise UserError(
            f"{provenance.id!r} ({type(model).__name__}) has no output layer whose size follows the labels",
            "start from another architecture",
        )


def _summary(kind: str, names: Collection[str]) -> str:
    """What is new or dropped in one line, modules named once."""
    modules = sorted({name.rpartition(".")[0] or name for name in names})
    shown = ", ".join(modules[:4]) + (f" and {len(modules) - 4} more" if len(modules) > 4 else "")
    return f"{kind}: {shown}" if modules else f"nothing {kind}"


def _load_model(
    location: dict[str, Any], config: Any, task: Task, provenance: Provenance
) -> tuple[Any, dict]:
    with _quiet():
        try:
            return task.model_class.from_pretrained(
                **location,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise UserError(
                f"cannot load the weights of {provenance.id!r}: {one_line(error)}",
                "the file may be damaged or missing; download it again",
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Mute transformers' own load report: what is new and what was dropped is said by us, in one line."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
