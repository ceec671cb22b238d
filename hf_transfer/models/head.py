"""The head: the parameters that the load report names as new, and the output layer among them."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from hf_transfer.errors import UserError
from hf_transfer.record import ProblemType


def owner(name: str) -> str:
    """The path of the module that a parameter or buffer belongs to."""
    return name.rpartition(".")[0]


def owners(names: Iterable[str]) -> set[str]:
    """The paths of the modules that some parameters or buffers belong to."""
    return set(map(owner, names))


def below(paths: Iterable[str]) -> tuple[str, ...]:
    """What the names of all that is in some modules begin with, for str.startswith."""
    return tuple(f"{path}." for path in paths)


def innermost(name: str, known: Mapping[str, Any]) -> Any:
    """The value in `known` of a name, or else of the innermost module around it that has one."""
    while name and name not in known:
        name = owner(name)
    return known[name]


# --- the output layer ---


def find_output_layer(model: Any) -> set[str]:
    """The names of the parameters whose shape depends on the number of labels.

    Works for any architecture: another model of the class with one label more is built on the meta
    device, without memory for its weights, and shapes are compared.
    """
    config = copy.deepcopy(model.config)
    set_labels(config, list(map(str, range(config.num_labels + 1))))
    with torch.device("meta"):
        other = type(model)._from_config(config)
    theirs = dict(other.named_parameters())
    return {name for name, ours in model.named_parameters() if theirs[name].shape != ours.shape}


def find_linear_head(model: Any, output_layer: Collection[str] | None = None) -> str | None:
    """The path of the output layer if it is one linear layer, else None.

    `output_layer` is what find_output_layer returns, where that is known already.
    """
    modules = owners(find_output_layer(model) if output_layer is None else output_layer)
    if len(modules) != 1:
        return None
    (layer,) = modules
    return layer if type(model.get_submodule(layer)) is nn.Linear else None


def headless(model: Any) -> AbstractContextManager[None]:
    """A context in which a model returns what its linear output layer reads, in place of logits.

    Features of shape (rows, width).
    """
    return in_place_of(model.get_submodule(find_linear_head(model)), lambda features: features)


@contextmanager
def in_place_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A context in which `forward` runs in place of a module's own forward."""
    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(module, "forward")


def read_logits(outputs: Any) -> torch.Tensor:
    """The logits among a classification model's outputs.

    PP-LCNet gives them another name, as its first output.
    """
    return outputs["logits"] if "logits" in outputs else outputs[0]


# --- labels ---


def require_labels(labels: Sequence[str], problem_type: ProblemType) -> None:
    """Raise UserError unless every label name is unique and there are enough of them."""
    for name, count in Counter(labels).items():
        if count > 1:
            raise UserError(
                f"the label {name!r} is named twice", "every label needs a name of its own"
            )
    if not labels or (len(labels) == 1 and problem_type == "single_label_classification"):
        raise UserError(
            f"one label only: {', '.join(map(repr, labels)) or 'none'}",
            "a classifier needs two classes or more",
        )
    if problem_type == "regression" and len(labels) > 1:
        raise UserError(
            f"a regression has one output, not {len(labels)}", "give one number per row"
        )


def set_labels(config: Any, labels: Sequence[str]) -> None:
    """Write label names into a model config, numbered in their order."""
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = dict(zip(labels, range(len(labels)), strict=True))


# --- new parameters ---


def renew(model: Any, names: Iterable[str]) -> None:
    """Initialise the parameters called `names` as transformers does for the model's class."""
    for path in owners(names):
        module = model.get_submodule(path)
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False
        with torch.no_grad():
            model._init_weights(module)


def require_only_head_new(model: Any, new: set[str], head: set[str], source: str) -> None:
    """Raise UserError if a new parameter or buffer is none of those called `head`.

    A pooler of the base model may be new as well: encoders that were pretrained without one lack
    it. Anything else that is missing is damage, or the checkpoint of another architecture.
    """
    pooler = f"{model.base_model_prefix}.pooler."
    modules = owners(head)
    unexpected = new - head
    missing = [
        name
        for name in model.state_dict()
        if name in unexpected and owner(name) not in modules and not name.startswith(pooler)
    ]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"the checkpoint {source!r} lacks {len(missing)} of the tensors below the head: "
            + ", ".join(missing[:5])
            + more,
            "its weights do not fit its config.json; take another revision or download it again",
        )


def parameter_count(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
