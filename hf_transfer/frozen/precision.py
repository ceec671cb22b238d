"""bfloat16 for a forward pass, and for activations on disk."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Dtype = Literal["float32", "bfloat16"]


@contextmanager
def in_bfloat16(model: nn.Module) -> Iterator[None]:
    """Within the context the model computes in bfloat16; its weights are restored to the bit.

    Twice as fast where the processor has AMX or avx512_bf16, or on a GPU; CPU autocast is slower
    than float32. Of the buffers only the statistics of BatchNorm are converted: frequencies of
    positions need float32.
    """
    statistics = itertools.chain.from_iterable(
        module.buffers() for module in model.modules() if isinstance(module, _BatchNorm)
    )
    halved = {id(t): t for t in (*model.parameters(), *statistics) if t.is_floating_point()}
    originals = [(tensor, tensor.data) for tensor in halved.values()]
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
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }


def to_numpy(tensor: torch.Tensor, dtype: Dtype) -> np.ndarray:
    """The values as float32, or as the bits of bfloat16 in uint16, since numpy has no bfloat16."""
    if dtype == "bfloat16":
        return tensor.to(torch.bfloat16).cpu().contiguous().view(torch.uint16).numpy()
    return tensor.float().cpu().numpy()


def to_float32(array: np.ndarray) -> torch.Tensor:
    """A copy of the values as float32; uint16 is read as the bits of bfloat16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.copy()).view(torch.bfloat16).float()
    return torch.from_numpy(np.array(array, dtype=np.float32))
