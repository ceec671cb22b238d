"""The layer that lets a head read the mean over all tokens: its weights, and how to recognise it.

A BERT layer computes, at every position x,

    a = LayerNorm(x + output(attention(x)))
    y = LayerNorm(a + feed_forward(a))

With query and key weights of zero all attention scores are equal, so each of the n tokens that are
no padding gets the weight 1/n. With the identity for values, attention is then the mean of the
tokens. The output layer multiplies it by MEAN_SCALE, and a feed-forward layer of zero adds nothing.
So y = LayerNorm(x + 1000 * mean). With three tokens of width 4, computed by such a layer:

    tokens                         (3, 0, -1, 2)    (1, -2, 2, -1)    (-1, -1, 5, 2)
    their mean                     (1, -1, 2, 1)
    first token + 1000 * mean      (1003, -1000, 1999, 1002), of mean 751 and deviation 1089.7
    y at the first token           (0.231, -1.607, 1.145, 0.230)
    y at the second token          (0.230, -1.606, 1.147, 0.228)
    the mean, standardised         (0.229, -1.606, 1.147, 0.229)

Whichever position the head reads, it reads the mean, standardised over its values, to within 0.002.
The result is a plain checkpoint with one more layer, which loads without any code of ours.
"""

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from hf_transfer.models.head import below, owner, owners
from hf_transfer.models.layers import layer_blocks, layer_map

# Config options of transformers' own classes that make a head read the mean. The summary_type of
# XLM, Flaubert and XLNet is not among them: its mean includes padding.
MEAN_OPTIONS = {"classifier_pooling": "mean"}

# The linear layers of an attention that what it mixes passes through, by transformers' names.
VALUE_LAYER = re.compile(r"[._]v(alue)?(_lin|_proj|_global)?$")
OUTPUT_LAYER = re.compile(r"att(n|ention)\w*\.(.*\.)?(output\.dense|out_lin|out_proj|o_proj|o)$")

# Factor of the mean. The norm behind it leaves a thousandth of the token that the mean is added to,
# and values below 65 still fit into 16 bits.
MEAN_SCALE = 1e3

# Factor and offset of a dense layer before the output layer, such that the activation behind it is
# close to linear for values of unit size. The first is for tanh, the second for ReLU and its smooth
# relatives. A closed-form head on MiniLM is as good with any factor of tanh from 0.05 to 0.3, and
# worse with 1.
NEAR_LINEAR = ((0.2, 0.0), (1.0, 4.0))


def fill_layer(model: nn.Module, names: Collection[str]) -> None:
    """Write weights into a layer that make it return norm(token + MEAN_SCALE * mean).

    `names` are the parameters of the layer. Raises ValueError if the values and outputs of its
    attention cannot be told apart by name, or if a matrix that becomes an identity is not square.
    """
    if not _has_attention(model, names):
        raise ValueError("the value and output layers of its attention have unknown names")
    tensors = model.state_dict()
    for name in names:
        write_constant(name, tensors[name], _constant_of(name, tensors[name]))


def write_constant(name: str, tensor: torch.Tensor, value: float) -> None:
    """Set a vector to a constant, or a matrix to that multiple of the identity, in place.

    Raises ValueError for a multiple other than zero if the tensor is not a square matrix.
    """
    if tensor.ndim < 2:
        tensor.fill_(value)
        return
    tensor.zero_()
    if value and not _is_square(tensor):
        raise ValueError(f"{name} is not square: {tuple(tensor.shape)}")
    if value:
        tensor.fill_diagonal_(value)


def find_mean_layer(model: Any, head: Collection[str]) -> tuple[str, ...]:
    """The parameters that make the head of a model read the mean, in order; usually none.

    These are a layer with the weights of fill_layer, and the near-linear dense layer behind it, if
    any. `head` names the trainable parameters of the head (Checkpoint.head). All weights between
    the layer before and the head must be equal to the bit: a layer that has learned since belongs
    to the network.
    """
    if model.main_input_name != "input_ids" or getattr(model.config, "is_encoder_decoder", False):
        return ()
    towers = layer_blocks(model)
    if not towers:
        return ()
    _, layers = towers[-1]
    parameters = dict(model.named_parameters())
    layer = [name for name in parameters if name.startswith(below(layers[-1]))]
    if not _has_attention(model, layer):
        return ()
    for name in layer:  # stops at the first that differs
        if not _is_constant(parameters[name], _constant_of(name, parameters[name])):
            return ()
    # The last stage before the head also holds what runs behind the last layer: a pooler's dense.
    stages = layer_map(model, head)
    last = [name for name in parameters if stages.depth_of(name) == stages.num_layers]
    return tuple(last) if _is_near_linear(model, set(last) - set(layer)) else ()


def _has_attention(model: nn.Module, names: Collection[str]) -> bool:
    linear = [path for path in owners(names) if isinstance(model.get_submodule(path), nn.Linear)]
    return any(map(VALUE_LAYER.search, linear)) and any(map(OUTPUT_LAYER.search, linear))


def _constant_of(name: str, tensor: torch.Tensor) -> float:
    """The constant, or multiple of the identity, that a parameter of the layer is set to."""
    if name.endswith("bias"):
        return 0.0
    if tensor.ndim == 1 or VALUE_LAYER.search(owner(name)):  # a vector: the weight of a norm
        return 1.0
    return MEAN_SCALE if OUTPUT_LAYER.search(owner(name)) else 0.0


def _is_near_linear(model: nn.Module, names: Collection[str]) -> bool:
    """Whether parameters are those of one dense layer set to a pair of NEAR_LINEAR, or none."""
    modules = list(map(model.get_submodule, owners(names)))
    if not modules:
        return True
    dense = modules.pop()
    if modules or not isinstance(dense, nn.Linear):
        return False
    return any(
        _is_constant(dense.weight, factor)
        and (dense.bias is None or _is_constant(dense.bias, offset))
        for factor, offset in NEAR_LINEAR
    )


def _is_constant(tensor: torch.Tensor, value: float) -> bool:
    """Whether a tensor is as write_constant leaves it."""
    if tensor.ndim < 2:
        return bool((tensor == value).all())
    if not value:
        return not bool(tensor.any())
    on_diagonal = _is_square(tensor) and bool((tensor.diagonal() == value).all())
    return on_diagonal and int(tensor.count_nonzero()) == len(tensor)


def _is_square(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
