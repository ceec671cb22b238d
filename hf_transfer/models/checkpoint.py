"""A pretrained network, loaded with the AutoModel classes, with a head for the given labels."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import filterfalse
from typing import Any

import safetensors
import torch
from transformers import set_seed

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.model import ModelConfig
from hf_transfer.data.encode import TextInput, make_encoder
from hf_transfer.data.prepared import Preparation
from hf_transfer.data.sound_batches import AudioInput
from hf_transfer.data.sources import Data
from hf_transfer.errors import UserError, one_line
from hf_transfer.models import head as heads
from hf_transfer.models.adapters import Adapter
from hf_transfer.models.audio_input import read_input
from hf_transfer.models.layers import LayerMap, find_head, layer_map
from hf_transfer.models.locate import (
    Location,
    Provenance,
    load_processor,
    locate,
    quiet_transformers,
    read_config,
)
from hf_transfer.models.mean_pooling_layer import MEAN_OPTIONS, find_mean_layer
from hf_transfer.models.thresholds import keep_thresholds
from hf_transfer.tasks import Task, find_task

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)  # equal to itself alone, and hashable
class Checkpoint:
    """A model for a task, its processor, its provenance, and which of its parameters are new.

    `new_parameters` names exactly the parameters that the checkpoint does not have,
    `dropped_parameters` the tensors of the checkpoint that the model does not have, and `head` the
    parameters that are trained when the head alone is. Parameters called `fixed` make the head read
    the mean over tokens (pooling.py) and are never trained.
    """

    model: Any
    task: Task
    labels: tuple[str, ...]  # label names
    head: tuple[str, ...]
    new_parameters: tuple[str, ...]
    dropped_parameters: tuple[str, ...]
    provenance: Provenance
    read_processor: Callable[[], Any]
    seconds: float = 0.0  # loading time
    adapter: Adapter | None = None  # trained with the model, and merged into it
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
        return frozenset(heads.find_output_layer(self.model))

    @cached_property
    def linear_head(self) -> str | None:
        """The path of the output layer if it is one linear layer, else None."""
        return heads.find_linear_head(self.model, self.output_layer)

    @cached_property
    def takes(self) -> TextInput | AudioInput | None:
        """What the model takes of a text or a sound; its tokenizer is set up for it."""
        return read_input(self.model, self.processor)

    @property
    def reads_mean(self) -> bool:
        """Whether the head reads the mean over tokens, by an option or by an added layer."""
        config = self.model.config
        options = (getattr(config, name, None) == value for name, value in MEAN_OPTIONS.items())
        return bool(self.fixed) or any(options)

    @property
    def processor(self) -> Any:
        """The image processor or tokenizer; loaded at the first access."""
        return self.read_processor()


def load_checkpoint(
    config: ModelConfig,
    data: Data,
    seed: int = 0,
    model_class: Any = None,
    processor_class: Any = None,
) -> Checkpoint:
    """A checkpoint (Hub id, folder, builtin:NAME) with a new head for the labels, in 32 bits.

    The head is new even if the checkpoint's has the same size: weights of another task are no
    start. With `keep_head` it stays, if its label names are the same in the same order. A layer
    that an earlier run added, for the head to read the mean, is recognised by its weights: it is
    `fixed`.

    `model_class` (AutoModelFor*) and `processor_class` (Auto*) are by default those of the data's
    task. Raises UserError if the checkpoint cannot be loaded, is of another modality, or lacks
    parameters other than the head's.
    """
    began = time.perf_counter()
    heads.require_labels(data.labels, data.problem_type)
    location = locate(config)
    name = location.provenance.id
    model, new, dropped = _load_model(location, config, data, seed, model_class)
    log.info("%s: %s; %s", name, _summary("new", new), _summary("dropped", dropped))
    ordered = tuple(filter(new.__contains__, dict(model.named_parameters())))
    head = ordered or tuple(sorted(heads.find_output_layer(model)))
    fixed = find_mean_layer(model, head)
    if fixed:
        log.info("%s: the head reads the mean; the layer for it is not trained", name)
    processor_class = processor_class or data.task.processor_class
    return Checkpoint(
        model=model,
        task=data.task,
        labels=tuple(data.labels),
        head=head,
        new_parameters=ordered,
        dropped_parameters=tuple(sorted(dropped)),
        provenance=location.provenance,
        read_processor=cache(partial(load_processor, location, processor_class)),
        seconds=time.perf_counter() - began,
        fixed=fixed,
    )


def load_preparation(
    config: ModelConfig, task: Task | str, cache_config: CacheConfig, processor_class: Any = None
) -> Preparation | None:
    """How the processor of a checkpoint reads images, for load_data; None for a task without them.

    No weights are read. Raises UserError as load_checkpoint does.
    """
    task = find_task(task)
    if not task.has_images:
        return None
    location = locate(config)
    model_config = read_config(location, task)
    processor = load_processor(location, processor_class or task.processor_class)
    return Preparation(make_encoder(task, processor, model_config), processor, cache_config)


def randomized(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """The same architecture and processor with nothing transferred.

    Every parameter that is not fixed is new.
    """
    set_seed(seed)
    model = type(checkpoint.model)._from_config(checkpoint.model.config)
    fixed = {name: checkpoint.model.get_parameter(name) for name in checkpoint.fixed}
    model.load_state_dict(fixed, strict=False)
    new = tuple(filterfalse(fixed.__contains__, dict(model.named_parameters())))
    return replace(checkpoint, model=model, new_parameters=new, dropped_parameters=())


def _load_model(
    location: Location, config: ModelConfig, data: Data, seed: int, model_class: Any
) -> tuple[Any, set[str], set[str]]:
    """The model, the names of its new parameters, and of the checkpoint's tensors it drops."""
    name = location.provenance.id
    model_config = read_config(location, data.task)
    if config.keep_head:
        _require_same_labels(model_config, data.labels, name)
    same_size = model_config.num_labels == len(data.labels)
    heads.set_labels(model_config, data.labels)
    model_config.problem_type = data.problem_type
    keep_thresholds(model_config, None)  # of other data
    set_seed(seed)  # new parameters are drawn from here on
    model_class = model_class or data.task.model_class
    model, report = _from_pretrained(location, model_config, model_class)
    new, dropped = _renew_head(model, report, loaded=same_size and not config.keep_head)
    heads.require_only_head_new(model, new, find_head(model), name)
    _require_head(model, new, config.keep_head, name)
    return model, new, dropped


def _from_pretrained(
    location: Location, config: Any, model_class: Any
) -> tuple[Any, dict[str, Any]]:
    with quiet_transformers():
        try:
            return model_class.from_pretrained(
                **location.arguments,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise UserError(
                f"cannot load the weights of {location.provenance.id!r}: {one_line(error)}",
                "the file may be damaged or missing; download it again",
            ) from error


def _renew_head(model: Any, report: Mapping[str, Any], loaded: bool) -> tuple[set[str], set[str]]:
    """Names of the parameters that are new, and of the checkpoint's tensors that are dropped.

    Where an output layer of the same size was `loaded`, it gets new values here. One of another
    size is new already: transformers reports it as mismatched.
    """
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    missing = set(report["missing_keys"])
    output_layer = heads.find_output_layer(model) if loaded else set()
    heads.renew(model, output_layer)
    dropped = set(report["unexpected_keys"]) | mismatched | (output_layer - missing)
    return missing | mismatched | output_layer, dropped


def _require_same_labels(config: Any, labels: Sequence[str], name: str) -> None:
    old = list(map(config.id2label.get, range(config.num_labels)))
    if old == list(labels):
        return
    pairs = ((a, b) for a, b in zip(old, labels, strict=False) if a != b)
    theirs, ours = next(pairs, (len(old), len(labels)))
    raise UserError(
        f"--keep_head: the labels of {name!r} are not the dataset's: "
        f"{theirs!r} in place of {ours!r}",
        "leave out --keep_head to start with a new head",
    )


def _require_head(model: Any, new: set[str], keep_head: bool, name: str) -> None:
    if keep_head and new:
        raise UserError(
            f"--keep_head: {name!r} brings no head, {_summary('new', new)}", "leave out --keep_head"
        )
    if not keep_head and not new:
        raise UserError(
            f"{name!r} ({type(model).__name__}) has no output layer whose size follows the labels",
            "start from another architecture",
        )


def _summary(kind: str, names: Collection[str]) -> str:
    modules = sorted({heads.owner(name) or name for name in names})
    shown = ", ".join(modules[:4]) + (f" and {len(modules) - 4} more" if len(modules) > 4 else "")
    return f"{kind}: {shown}" if modules else f"nothing {kind}"
