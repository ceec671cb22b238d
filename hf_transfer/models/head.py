"""The head: what the load report says is new, and nothing else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hf_transfer.errors import UserError


def find_output_layer(config: Any, model_class: Any) -> set[str]:
    """The names of the parameters whose shape depends on the number of labels.

    Two models are built without memory for their weights, one with a label more; where their shapes differ is the
    output layer, in any architecture.
    """
    shapes = []
    for labels in (config.num_labels, config.num_labels + 1):
        variant = type(config).from_dict({**config.to_dict(), "id2label": {i: str(i) for i in range(labels)}})
        with torch.device("meta"):
            model = model_class.from_config(variant)
        shapes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    return {name for name, shape in shapes[0].items() if shapes[1][name] != shape}


def renew(model: Any, names: Iterable[str]) -> None:
    """Give the parameters called `names` the values that a model of their class starts from (transformers' own)."""
    for owner in {name.rpartition(".")[0] for name in names}:
        module = model.get_submodule(owner)
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False
        with torch.no_grad():
            model._init_weights(module)


def require_only_head_new(model: Any, new: set[str], source: str) -> None:
    """Raise UserError if a parameter or buffer is new that is not the head's.

    The head lies outside the base model. Of the base model, one linear layer at its very end may be new too: the
    pooler, which encoders that were pretrained without one lack. All else that is missing is damage.
    """
    prefix = f"{model.base_model_prefix}."
    inside = [name for name in model.state_dict() if name.startswith(prefix)]
    if not inside:
        prefix, inside = "", list(model.state_dict())
    last_part = inside[-1].removeprefix(prefix).split(".")[0]
    end = {name for name in inside if name.removeprefix(prefix).split(".")[0] == last_part}
    linear = all(isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear) for name in end)
    allowed = end if not prefix or (linear and len(end) <= 2) else set()
    damaged = [name for name in inside if name in new and name not in allowed]
    if damaged:
        shown = ", ".join(damaged[:5]) + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else "")
        raise UserError(
            f"the checkpoint {source!r} lacks {len(damaged)} of the tensors below the head: {shown}",
            "its weights do not fit its config.json; take another revision or download it again",
        )


def parameter_count(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
