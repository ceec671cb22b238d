"""The cost of a plan, in forward passes of the complete model over all training rows.

A backward pass takes about twice the operations of the forward pass: one product of matrices for
the gradients of a layer's inputs, and one for those of its weights (Kaplan et al. 2020, arXiv
2001.08361, section 2.1). So an epoch costs one forward pass, and two more of what is between the
lowest trainable stage and the logits. Frozen layers whose activations are cached cost a forward
pass once, and nothing afterwards. Evaluations, the optimizer and the closed-form solver are left
out: they are the same for all plans, or small.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from hf_transfer.models.layers import LayerMap
from hf_transfer.strategies.plan import Phase, Plan, learning_rates

BACKWARD_COST = 2.0  # of a backward pass, in forward passes
# With adapters: the gradients of the inputs. Those of a few added weights are next to nothing.
ADAPTER_BACKWARD_COST = 1.0


def plan_cost(
    plan: Plan, layers: LayerMap, flops: Sequence[float], fixed: Collection[str] = ()
) -> float:
    """The cost of all phases together."""
    return sum(phase_costs(plan, layers, flops, fixed))


def phase_costs(
    plan: Plan,
    layers: LayerMap,
    flops: Sequence[float],
    fixed: Collection[str] = (),
    uncached: Collection[str] = (),
) -> tuple[float, ...]:
    """The cost of each phase; those named in `uncached` cache nothing, whatever the plan says.

    Activations that a phase in steps has cached serve later ones with the same boundary, until
    weights below it change.
    """
    plan_without_cache = replace(plan, cache=replace(plan.cache, on=False))
    costs = []
    cached = set[int]()  # boundaries whose activations are in the store
    for phase in plan.phases:
        own_plan = plan_without_cache if phase.name in uncached else plan
        cost = phase_cost(phase, own_plan, layers, flops, fixed)
        boundary = cache_boundary(phase, own_plan, layers, fixed)
        if phase.solver == "trainer" and boundary in cached:
            cost -= _caching_cost(boundary, plan, flops)
        costs.append(cost)
        lowest = lowest_trainable_stage(phase, plan, layers, fixed)
        cached = {each for each in cached if each <= lowest}
        # The features of a solved head are another activation, which no phase in steps reads.
        if boundary and phase.solver == "trainer":
            cached.add(boundary)
    return tuple(costs)


def phase_cost(
    phase: Phase, plan: Plan, layers: LayerMap, flops: Sequence[float], fixed: Collection[str] = ()
) -> float:
    """The cost of a phase alone; `flops` are those of each stage in a forward pass."""
    boundary = cache_boundary(phase, plan, layers, fixed)
    caching = _caching_cost(boundary, plan, flops)
    if phase.solver == "convex":
        return caching
    if phase.adapter:
        return phase.epochs * (1 + ADAPTER_BACKWARD_COST)
    forward = _flops_share_from(boundary, flops)
    trainable = _flops_share_from(lowest_trainable_stage(phase, plan, layers, fixed), flops)
    return caching + phase.epochs * (forward + BACKWARD_COST * trainable)


def cache_boundary(phase: Phase, plan: Plan, layers: LayerMap, fixed: Collection[str] = ()) -> int:
    """How many stages are computed once, from the embeddings up; 0 if all run in every epoch.

    All below a head that is solved. In steps the frozen ones, if the plan has a cache, and if they
    are more than the embeddings, which cost less to compute than to read.
    """
    if phase.solver == "convex":
        return len(layers.stages) - 1
    lowest = lowest_trainable_stage(phase, plan, layers, fixed)
    return lowest if plan.cache.on and lowest > 1 and not phase.adapter else 0


def lowest_trainable_stage(
    phase: Phase, plan: Plan, layers: LayerMap, fixed: Collection[str] = ()
) -> int:
    """The position of the lowest stage with a trainable parameter."""
    return min(layers.depth_of(name) for name in learning_rates(phase, plan, layers, fixed))


def _caching_cost(boundary: int, plan: Plan, flops: Sequence[float]) -> float:
    """The cost of the stages below a boundary once, or once for each view."""
    return max(1, plan.cache.views) * (1 - _flops_share_from(boundary, flops))


def _flops_share_from(stage: int, flops: Sequence[float]) -> float:
    """The share of a forward pass that a stage and those above it take."""
    return sum(flops[stage:]) / sum(flops)
