"""bfloat16 for a forward pass, and for activations on disk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_transfer.strategies.plan import FrozenDtype


@contextmanager
def in_bfloat16(model: nn.Module) -> Iterator[None]:
    """Within the context the model computes in bfloat16; its weights are restored to the bit.

    Two to three times as fast where the processor has AMX or avx512_bf16, or on a GPU. Of the
    buffers only the statistics of BatchNorm are converted: frequencies of positions need float32.
    """
    tensors: set[torch.Tensor] = {*model.parameters()}
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            tensors.update(module.buffers())
    originals = [(tensor, tensor.data) for tensor in tensors if tensor.is_floating_point()]
    try:
        for tensor, data in originals:
            tensor.data = data.bfloat16()
        yield
    finally:
        for tensor, data in originals:
            tensor.data = data


def in_dtype_of(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs, those of floating point in the dtype of the model's parameters."""
    dtype = next(model.parameters()).dtype
    floating = {name: each.to(dtype) for name, each in inputs.items() if each.is_floating_point()}
    return {**inputs, **floating}


def to_numpy(tensor: torch.Tensor, dtype: FrozenDtype) -> np.ndarray:
    """The values as float32, or as the bits of bfloat16 in uint16, since numpy has no bfloat16."""
    if dtype == "bfloat16":
        return tensor.to(torch.bfloat16).cpu().contiguous().view(torch.uint16).numpy()
    return tensor.float().cpu().numpy()


def to_float32(array: np.ndarray) -> torch.Tensor:
    """A copy of the values as float32; uint16 is read as the bits of bfloat16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.copy()).view(torch.bfloat16).float()
    return torch.from_numpy(np.array(array, dtype=np.float32))
