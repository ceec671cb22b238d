"""Freezing that is real: no gradient, dropout off, BatchNorm statistics fixed, whoever calls train()."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def training_only(model: nn.Module, trainable: Collection[str]) -> Iterator[None]:
    """Within the context only the parameters called `trainable` learn; frozen modules stay in eval mode.

    Trainer calls model.train() at every step, which would switch dropout and BatchNorm of a frozen body on again
    (transformers issue 24479); so the frozen modules' own `train` is held at eval meanwhile.
    """
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    dropping = [
        m for m in model.modules() if getattr(m, "layerdrop", 0.0) and any(_frozen_roots(m))
    ]
    rates = [module.layerdrop for module in dropping]
    for module in dropping:
        object.__setattr__(
            module, "layerdrop", 0.0
        )  # it would drop frozen layers too, which are not asked
    held = list(_frozen_roots(model))
    for module in held:
        module.eval()
        object.__setattr__(module, "train", _stay(module))
    try:
        yield
    finally:
        for module, rate in zip(dropping, rates, strict=True):
            object.__setattr__(module, "layerdrop", rate)
        for module in held:
            object.__delattr__(module, "train")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before.get(name, True))


def _frozen_roots(module: nn.Module) -> Iterator[nn.Module]:
    """The topmost modules that have parameters, none of which learns. One without parameters goes with its parent."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield module
        return
    for child in module.children():
        yield from _frozen_roots(child)


def _stay(module: nn.Module) -> Any:
    return lambda mode=True: module
