"""The layer that is made by hand so that a head reads the mean: what is written into it, and how it is known again."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from hf_transfer.models.layers import layer_blocks, layer_map

# Options of transformers' own classes. XLM's, Flaubert's and XLNet's summary_type is none: that mean has padding in it.
OPTIONS = {"classifier_pooling": "mean"}

# The linear layers of an attention through which what it mixes goes, by the names that transformers gives them.
VALUE = re.compile(r"[._]v(alue)?(_lin|_proj|_global)?$")
OUTPUT = re.compile(r"att(n|ention)\w*\.(.*\.)?(output\.dense|out_lin|out_proj|o_proj|o)$")

# By what the mean is multiplied, so that the norm behind it sees nothing of the token that it is added to: a thousandth
# is left, and values below 65 still fit into 16 bits.
LOUDNESS = 1e3

# What the dense layer before the output layer does to values of unit size, so that the activation behind it is close to
# linear: factor and offset. The first is for tanh, the second for ReLU and its smooth kin. A head solved on MiniLM is
# as good with any factor of tanh from 0.05 to 0.3, and worse with 1.
BENDS = ((0.2, 0.0), (1.0, 4.0))


def fill_layer(model: nn.Module, names: Collection[str]) -> None:
    """Make a layer give the mean of what it reads, at every position: norm(token + LOUDNESS * mean), and no more.

    Queries and keys of zero make the attention uniform; what comes behind it adds nothing. `names` are the parameters
    of the layer. Raises ValueError if its attention is not understood.
    """
    if not _has_attention(model, names):
        raise ValueError("no values and outputs are told apart in its attention")
    tensors = model.state_dict()
    for name in names:
        write(name, tensors[name], _value(name, tensors[name]))


def write(name: str, tensor: torch.Tensor, value: float) -> None:
    """Fill a vector with a value, or make a matrix that multiple of the identity; raises ValueError if not square."""
    if tensor.ndim < 2:
        tensor.fill_(value)
        return
    tensor.zero_()
    if value:
        if not _is_square(tensor):
            raise ValueError(f"{name} is not square: {tuple(tensor.shape)}")
        tensor.fill_diagonal_(value)


def find_mean_layer(model: Any, head: Collection[str]) -> tuple[str, ...]:
    """The parameters that were put into a model for its head to read the mean, by name in order; none in most models.

    These are a layer as fill_layer leaves it, with a straight dense layer behind it or none. `head` names what learns
    (Checkpoint.head). All between the layer before and the head must be to the bit as it was written: what has learned
    since is a network's own.
    """
    if model.main_input_name != "input_ids" or getattr(model.config, "is_encoder_decoder", False):
        return ()
    towers = layer_blocks(model)
    if not towers:
        return ()
    paths = tuple(f"{path}." for path in towers[-1][1][-1])
    layer = [name for name, _ in model.named_parameters() if name.startswith(paths)]
    if not _has_attention(model, layer) or not _is_filled(model, layer):
        return ()
    stages = layer_map(model, head)
    last = [
        name for name, _ in model.named_parameters() if stages.depth_of(name) == stages.num_layers
    ]
    return tuple(last) if _is_straight(model, set(last) - set(layer)) else ()


def _has_attention(model: nn.Module, names: Collection[str]) -> bool:
    """Whether there are linear layers among the owners of parameters that bear the values and outputs of attention."""
    owners = {name.rpartition(".")[0] for name in names}
    linear = [owner for owner in owners if isinstance(model.get_submodule(owner), nn.Linear)]
    return all(any(role.search(owner) for owner in linear) for role in (VALUE, OUTPUT))


def _value(name: str, tensor: torch.Tensor) -> float:
    """What is written into a parameter of the layer."""
    if name.endswith("bias"):
        return 0.0
    if tensor.ndim == 1:
        return 1.0  # of a norm
    owner = name.rpartition(".")[0]
    return 1.0 if VALUE.search(owner) else LOUDNESS if OUTPUT.search(owner) else 0.0


def _is_filled(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether a layer is as fill_layer leaves it; the first that differs is the last that is looked at."""
    tensors = ((name, model.get_parameter(name)) for name in names)
    return all(_holds(tensor, _value(name, tensor)) for name, tensor in tensors)


def _is_straight(model: nn.Module, names: Collection[str]) -> bool:
    """Whether parameters are those of one dense layer that has one of the BENDS, or none at all."""
    owners = {name.rpartition(".")[0] for name in names}
    if not owners:
        return True
    dense = model.get_submodule(owners.pop())
    if owners or not isinstance(dense, nn.Linear):
        return False
    return any(
        _holds(dense.weight, factor) and (dense.bias is None or _holds(dense.bias, offset))
        for factor, offset in BENDS
    )


def _holds(tensor: torch.Tensor, value: float) -> bool:
    """Whether a tensor is what `write` makes of it."""
    if tensor.ndim < 2:
        return bool((tensor == value).all())
    if not value:
        return not bool(tensor.any())
    if not _is_square(tensor):
        return False
    return bool((tensor.diagonal() == value).all()) and int(tensor.count_nonzero()) == len(tensor)


def _is_square(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
