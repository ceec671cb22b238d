"""Freezing: no gradient, dropout off, fixed BatchNorm statistics, whoever calls train()."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def training_only(model: nn.Module, trainable: Collection[str]) -> Iterator[None]:
    """A context in which only the parameters called `trainable` are trained.

    Frozen modules stay in eval mode. Trainer calls model.train() at every step, which would switch
    on dropout and BatchNorm of a frozen body (transformers issue 24479); so `train` of the frozen
    modules does nothing within the context.
    """
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    # Layerdrop skips random layers in training. It would skip frozen layers too.
    layerdrop = {
        module: module.layerdrop
        for module in model.modules()
        if getattr(module, "layerdrop", 0.0) and any(_frozen_roots(module))
    }
    for module in layerdrop:
        object.__setattr__(module, "layerdrop", 0.0)
    frozen = list(_frozen_roots(model))
    for module in frozen:
        module.eval()
        object.__setattr__(module, "train", _unchanged(module))
    try:
        yield
    finally:
        for module, probability in layerdrop.items():
            object.__setattr__(module, "layerdrop", probability)
        for module in frozen:
            object.__delattr__(module, "train")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before.get(name, True))


def _frozen_roots(module: nn.Module) -> Iterator[nn.Module]:
    """The topmost modules that have parameters, none of them trainable.

    A module without parameters goes with its parent.
    """
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield module
        return
    for child in module.children():
        yield from _frozen_roots(child)


def _unchanged(module: nn.Module) -> Callable[..., nn.Module]:
    """A `train` that leaves the modes of a module as they are."""
    return lambda mode=True: module
