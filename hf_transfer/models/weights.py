"""The weights of a model as values: digests, copies, and restoring from copies."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from hf_transfer.models.head import owner, owners

Tensors = dict[str, torch.Tensor]


def weights_digest(model: Any) -> str:
    """A digest of every parameter and buffer of a model: names and bytes as they are in memory.

    A run is resumed only from the same digest at its start.
    """
    return _digest(
        (name, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        for name, tensor in model.state_dict().items()
    )


def partial_weights_digest(model: Any, without: Collection[str]) -> str:
    """A digest of the parameters and buffers of a model without some parameters, in 32 bits.

    Names, types and shapes are part of it. A buffer is left out where all parameters of its module
    are left out. Cached activations are found by it: other bytes here make every entry a miss,
    which is why this digest and weights_digest stay two.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    left_out = owners(without) - owners(parameters.keys() - set(without))
    state = model.state_dict()
    for name in list(state):
        if name in without or (name not in parameters and owner(name) in left_out):
            del state[name]
    return _digest(
        (
            f"{name} {tensor.dtype} {tuple(tensor.shape)}",
            np.ascontiguousarray(tensor.detach().cpu().float().numpy()),
        )
        for name, tensor in state.items()
    )


def _digest(tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    digest = xxhash.xxh3_128()
    for header, array in tensors:
        digest.update(header.encode())
        digest.update(array.data)
    return digest.hexdigest()


def copy_weights(model: nn.Module) -> Tensors:
    """Copies in main memory, by name, of the trainable parameters and of all saved buffers."""
    state = model.state_dict()
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    buffers = filter(state.__contains__, dict(model.named_buffers()))
    return {name: state[name].detach().to("cpu", copy=True) for name in (*trainable, *buffers)}


def restore_weights(model: nn.Module, weights: Tensors) -> None:
    """Load weights by name into a model; those without a name in `weights` stay.

    Raises RuntimeError for a name that the model lacks, and for another shape.
    """
    model.load_state_dict({**model.state_dict(), **weights}, strict=True)
