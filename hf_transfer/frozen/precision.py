"""A network in half the bits, for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def in_bfloat16(model: nn.Module) -> Iterator[None]:
    """Within the context the network computes in bfloat16; afterwards its weights are what they were, to the bit.

    Twice as fast where the processor has AMX or avx512_bf16, or on a GPU; CPU autocast is slower than 32 bits. Buffers
    but the statistics of BatchNorm stay: frequencies of positions need their 32 bits.
    """
    statistics = [b for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
    halved = {id(t): t for t in (*model.parameters(), *statistics) if t.is_floating_point()}
    kept = [(tensor, tensor.data) for tensor in halved.values()]
    try:
        for tensor, data in kept:
            tensor.data = data.bfloat16()
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def in_dtype_of(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs, numbers with a point as the network computes them."""
    dtype = next(model.parameters()).dtype
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
