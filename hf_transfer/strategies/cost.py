"""What a plan costs, in forward passes of the whole network over all training rows.

A backward pass takes about twice the operations of the forward pass: one product of matrices for the gradients of what
a layer reads, and one for those of its weights (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). So an epoch is one
forward pass, and two more of what lies between the lowest stage that learns and the logits. What is computed once is
a forward pass once and nothing afterwards. Evaluations, the optimizer and the solver are left out: they are the same
for all, or small.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from hf_transfer.models.layers import LayerMap
from hf_transfer.strategies.plan import Phase, Plan, learning_rates

BACKWARD = 2.0  # forward passes that a backward pass is worth
BACKWARD_OF_ADAPTERS = (
    1.0  # the gradients of what layers read; those of a few added weights are next to nothing
)


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
    whole: Collection[str] = (),
) -> tuple[float, ...]:
    """The cost of each phase; those called `whole` compute nothing once, whatever the plan says.

    What a phase in steps computed once serves later ones with the same boundary, until weights below it learn.
    """
    costs, known = [], set[int]()
    uncached = replace(plan, cache=replace(plan.cache, on=False))
    for phase in plan.phases:
        own = uncached if phase.name in whole else plan
        cost = phase_cost(phase, own, layers, flops, fixed)
        boundary = computed_below(phase, own, layers, fixed)
        if phase.solver == "trainer" and boundary in known:
            cost -= _one_pass(boundary, plan, flops)
        costs.append(cost)
        lowest = lowest_stage(phase, plan, layers, fixed)
        known = {each for each in known if each <= lowest}
        # The features of a solved head are stored in another form, which no phase in steps reads.
        known |= {boundary} if boundary and phase.solver == "trainer" else set()
    return tuple(costs)


def phase_cost(
    phase: Phase, plan: Plan, layers: LayerMap, flops: Sequence[float], fixed: Collection[str] = ()
) -> float:
    """The cost of a phase by itself; `flops` are those of each stage in a forward pass."""
    boundary = computed_below(phase, plan, layers, fixed)
    once = _one_pass(boundary, plan, flops)
    if phase.solver == "convex":
        return once
    if phase.adapter:
        return phase.epochs * (1 + BACKWARD_OF_ADAPTERS)
    forward = _share_from(boundary, flops)
    learns = _share_from(lowest_stage(phase, plan, layers, fixed), flops)
    return once + phase.epochs * (forward + BACKWARD * learns)


def computed_below(phase: Phase, plan: Plan, layers: LayerMap, fixed: Collection[str] = ()) -> int:
    """How many stages are computed once, from the embeddings up; 0: all of them run in every epoch.

    All below a head that is solved. In steps those that are frozen, if the plan keeps what they give and they are more
    than the embeddings, which cost less than reading it.
    """
    if phase.solver == "convex":
        return layers.head
    lowest = lowest_stage(phase, plan, layers, fixed)
    return lowest if plan.cache.on and lowest > 1 and not phase.adapter else 0


def lowest_stage(phase: Phase, plan: Plan, layers: LayerMap, fixed: Collection[str] = ()) -> int:
    """The position of the lowest stage that learns."""
    return min(layers.depth_of(name) for name in learning_rates(phase, plan, layers, fixed))


def _one_pass(boundary: int, plan: Plan, flops: Sequence[float]) -> float:
    """The cost of what lies below a boundary, once, or once a view."""
    return max(1, plan.cache.views) * (1 - _share_from(boundary, flops))


def _share_from(stage: int, flops: Sequence[float]) -> float:
    """The share of a forward pass that a stage and those above it take."""
    return sum(flops[stage:]) / sum(flops)
