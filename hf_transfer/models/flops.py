"""How much of a forward pass each stage of a network takes."""

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
    """Floating point operations of one forward pass of a batch, a number a stage; their sum is all that is counted.

    What runs within a module and none of its children belongs to the first stage of which the module has a parameter;
    of modules without any, to the one that calls them. PyTorch counts products of matrices and convolutions: a stage
    with other operations alone has 0. A network in which it counts nothing is measured by its parameters.
    """
    counter = FlopCounterMode(display=False)
    found = [0.0] * len(layers.stages)
    # The fused attention of a CPU is not among what is counted; the products that it stands for are.
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        counter,
        _attributing(model, layers, counter, found),
    ):
        model(**inputs)
    return tuple(found) if any(found) else _stage_parameters(model, layers)


@contextmanager
def _attributing(
    model: nn.Module, layers: LayerMap, counter: FlopCounterMode, found: list[float]
) -> Iterator[None]:
    """Within the context what is counted is added in `found` to the stage of the innermost module that runs."""
    running, counted = [0], 0.0

    def settle() -> None:
        nonlocal counted
        total = float(counter.get_total_flops())
        found[running[-1]] += total - counted
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
            hooks.callback(
                module.register_forward_pre_hook(lambda *_, stage=stage: enter(stage)).remove
            )
            hooks.callback(
                module.register_forward_hook(lambda *_: leave(), always_call=True).remove
            )
        yield
        settle()


def _first_stage(path: str, module: nn.Module, layers: LayerMap) -> int | None:
    """The lowest position of a stage that a module has a parameter of; None if it has none."""
    prefix = f"{path}." if path else ""
    names = (f"{prefix}{name}" for name, _ in module.named_parameters())
    return min((layers.depths[name] for name in names if name in layers.depths), default=None)


def _stage_parameters(model: nn.Module, layers: LayerMap) -> tuple[float, ...]:
    counts = [0.0] * len(layers.stages)
    for name, parameter in model.named_parameters():
        counts[layers.depth_of(name)] += parameter.numel()
    return tuple(counts)
