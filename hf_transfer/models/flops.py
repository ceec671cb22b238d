"""Floating point operations of each stage of a network."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_transfer.models.layers import LayerMap


def stage_flops(
    model: Any, inputs: Mapping[str, torch.Tensor], layers: LayerMap
) -> tuple[float, ...]:
    """Floating point operations of one forward pass of a batch, one number per stage.

    Their sum is all that is counted. What runs in a module and in none of its children belongs to
    the first stage of which the module has a parameter; in a module without parameters, to the
    stage of the module that calls it. PyTorch counts matrix products and convolutions: a stage with
    other operations alone has 0. A network without any of them is measured by its parameters.
    """
    counter = FlopCounterMode(display=False)
    counts = [0.0] * len(layers.stages)
    # PyTorch does not count the fused attention of a CPU; it does count the products of the plain
    # one, which the MATH backend runs.
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), math, counter, _counting_by_stage(model, layers, counter, counts):
        model(**inputs)
    if not any(counts):
        for name, parameter in model.named_parameters():
            counts[layers.depth_of(name)] += parameter.numel()
    return tuple(counts)


@contextmanager
def _counting_by_stage(
    model: nn.Module, layers: LayerMap, counter: FlopCounterMode, counts: list[float]
) -> Iterator[None]:
    """A context that adds what is counted to the stage of the innermost module that runs."""
    running = [0]  # stages of the modules that run, the innermost last
    counted = 0.0

    def settle() -> None:
        nonlocal counted
        total = float(counter.get_total_flops())
        counts[running[-1]] += total - counted
        counted = total

    def enter(stage: int | None) -> None:
        settle()
        running.append(running[-1] if stage is None else stage)

    def leave() -> None:
        settle()
        running.pop()

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            stage = _first_stage(path, module, layers)
            before = module.register_forward_pre_hook(lambda *_, stage=stage: enter(stage))
            after = module.register_forward_hook(lambda *_: leave(), always_call=True)
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield
        settle()


def _first_stage(path: str, module: nn.Module, layers: LayerMap) -> int | None:
    """The lowest position of a stage that a module has a parameter of; None if it has none."""
    names = layers.depths.keys() & dict(module.named_parameters(path))
    return min(map(layers.depth_of, names), default=None)
