"""The cost of a plan, in forward passes of the complete model over all training rows.

A backward pass takes about twice the operations of the forward pass: one product of matrices for
the gradients of a layer's inputs, and one for those of its weights (Kaplan et al. 2020, arXiv
2001.08361, section 2.1). So an epoch costs one forward pass, and two more of what is between the
lowest trainable stage and the logits. Frozen layers whose activations are cached cost a forward
pass once, and nothing afterwards. Evaluations, the optimizer and the closed-form solver are left
out: they are the same for all plans, or small.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hf_transfer.models.layers import LayerMap
from hf_transfer.strategies.plan import Phase, Plan, learning_rates

BACKWARD_COST = 2.0  # of a backward pass, in forward passes
# With adapters: the gradients of the inputs. Those of a few added weights are next to nothing.
ADAPTER_BACKWARD_COST = 1.0


@dataclass(frozen=True)
class Network:
    """The stages of a network, the operations of each in a forward pass, and what never trains."""

    layers: LayerMap
    flops: Sequence[float]
    fixed: Collection[str] = ()

    def share_from(self, stage: int) -> float:
        """The share of a forward pass that a stage and those above it take."""
        return sum(self.flops[stage:]) / sum(self.flops)

    def lowest_trainable_stage(self, phase: Phase, plan: Plan) -> int:
        """The position of the lowest stage with a trainable parameter."""
        trainable = learning_rates(phase, plan, self.layers, self.fixed)
        return min(map(self.layers.depth_of, trainable))


def plan_cost(plan: Plan, network: Network, caches: bool = True) -> float:
    """The cost of all phases together; `caches`: whether activations are cached."""
    return sum(phase_costs(plan, network, caches))


def phase_costs(
    plan: Plan, network: Network, caches: bool = True, uncached: Collection[str] = ()
) -> tuple[float, ...]:
    """The cost of each phase; those named in `uncached` cache nothing.

    Activations that a phase in steps has cached serve later ones with the same boundary, until
    weights below it change.
    """
    costs = []
    cached = set[int]()  # boundaries whose activations are in the store
    for phase in plan.phases:
        phase_caches = caches and phase.name not in uncached
        cost = phase_cost(phase, plan, network, phase_caches)
        boundary = cache_boundary(phase, plan, network, phase_caches)
        if phase.solver == "trainer" and boundary in cached:
            cost -= _caching_cost(boundary, plan, network)
        costs.append(cost)
        cached.intersection_update(range(network.lowest_trainable_stage(phase, plan) + 1))
        # The features of a solved head are another activation, which no phase in steps reads.
        if boundary and phase.solver == "trainer":
            cached.add(boundary)
    return tuple(costs)


def phase_cost(phase: Phase, plan: Plan, network: Network, caches: bool = True) -> float:
    """The cost of a phase alone."""
    boundary = cache_boundary(phase, plan, network, caches)
    caching = _caching_cost(boundary, plan, network)
    if phase.solver == "convex":
        return caching
    if phase.adapter:
        return phase.epochs * (1 + ADAPTER_BACKWARD_COST)
    backward = BACKWARD_COST * network.share_from(network.lowest_trainable_stage(phase, plan))
    return caching + phase.epochs * (network.share_from(boundary) + backward)


def cache_boundary(phase: Phase, plan: Plan, network: Network, caches: bool = True) -> int:
    """How many stages are computed once, from the embeddings up; 0 if all run in every epoch.

    All below a head that is solved. In steps the frozen ones, if activations are cached, and if
    they are more than the embeddings, which cost less to compute than to read.
    """
    if phase.solver == "convex":
        return network.layers.head
    lowest = network.lowest_trainable_stage(phase, plan)
    return lowest if caches and lowest > 1 and not phase.adapter else 0


def _caching_cost(boundary: int, plan: Plan, network: Network) -> float:
    """The cost of the stages below a boundary once, or once for each view."""
    return max(1, plan.cached_views) * (1 - network.share_from(boundary))
