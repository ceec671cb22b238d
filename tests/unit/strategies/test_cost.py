from dataclasses import replace

import pytest

from hf_transfer.models.layers import LayerMap
from hf_transfer.strategies.cost import Network, cache_boundary, phase_cost, phase_costs, plan_cost
from hf_transfer.strategies.phases import STRATEGIES
from hf_transfer.strategies.plan import Phase, Plan, Schedule

EVERYTHING = ("head", "body")
# Four layers, each a fifth of a pass; embeddings and head share the rest.
LAYERS = LayerMap(
    ("embeddings", "layer 1", "layer 2", "layer 3", "layer 4", "head"),
    {name: depth for depth, name in enumerate(("words", "one", "two", "three", "four", "output"))},
)
FLOPS = (10.0, 20.0, 20.0, 20.0, 20.0, 10.0)


NETWORK = Network(LAYERS, FLOPS)


def _plan(*phases: Phase, views: int = 0) -> Plan:
    return Plan("some", phases, 1e-3, 8, 0.01, cached_views=views)


def _cost(phase: Phase, views: int = 0, caches: bool = True) -> float:
    return phase_cost(phase, _plan(phase, views=views), NETWORK, caches)


def test_an_epoch_in_which_everything_learns_is_three_passes() -> None:
    assert _cost(Phase("full", EVERYTHING, 5)) == pytest.approx(15)


def test_a_head_that_is_solved_is_one_pass_below_it() -> None:
    assert _cost(Phase("head", ("head",), 5, solver="convex")) == pytest.approx(0.9)


def test_what_is_computed_once_costs_a_pass_and_no_epoch() -> None:
    assert _cost(Phase("top", EVERYTHING, 5, layers=2)) == pytest.approx(0.5 + 5 * 3 * 0.5)


def test_without_a_cache_what_is_frozen_runs_forward_in_every_epoch() -> None:
    assert _cost(Phase("top", EVERYTHING, 5, layers=2), caches=False) == pytest.approx(
        5 * (1 + 2 * 0.5)
    )


def test_embeddings_alone_are_not_computed_once() -> None:
    assert _cost(Phase("top", EVERYTHING, 5, layers=4)) == pytest.approx(5 * (1 + 2 * 0.9))


def test_adapters_spare_the_gradients_of_the_weights() -> None:
    assert _cost(Phase("lora", EVERYTHING, 5, adapter="lora")) == pytest.approx(10)


def test_every_view_that_is_computed_once_is_a_pass() -> None:
    assert _cost(Phase("top", EVERYTHING, 5, layers=2), views=3) == pytest.approx(
        3 * 0.5 + 5 * 3 * 0.5
    )


def test_what_never_learns_does_not_move_the_boundary() -> None:
    phase = Phase("top", EVERYTHING, 1, layers=2)
    assert cache_boundary(phase, _plan(phase), NETWORK) == 3
    assert cache_boundary(phase, _plan(phase), Network(LAYERS, FLOPS, fixed=("three",))) == 4


def test_a_pass_that_an_earlier_phase_made_is_not_made_again() -> None:
    first, second = Phase("a", EVERYTHING, 2, layers=2), Phase("b", EVERYTHING, 2, layers=2)
    costs = phase_costs(_plan(first, second), NETWORK)
    assert costs == pytest.approx((0.5 + 3, 3))


def test_a_pass_is_made_again_after_weights_below_have_learned() -> None:
    top = Phase("a", EVERYTHING, 2, layers=2)
    costs = phase_costs(_plan(top, Phase("b", EVERYTHING, 2), replace(top, name="c")), NETWORK)
    assert costs == pytest.approx((3.5, 6, 3.5))


def test_a_phase_that_cannot_be_split_runs_whole() -> None:
    plan = _plan(
        Phase("head", ("head",), 1, solver="convex"), Phase("top", EVERYTHING, 5, layers=2)
    )
    assert phase_costs(plan, NETWORK, uncached={"top"}) == pytest.approx((0.9, 10))


def test_the_cost_of_a_plan_is_that_of_its_phases() -> None:
    plan = _plan(Phase("head", ("head",), 1, solver="convex"), Phase("full", EVERYTHING, 5))
    assert plan_cost(plan, NETWORK) == pytest.approx(15.9)


def test_strategies_that_freeze_cost_less_than_training_everything() -> None:
    schedule = Schedule(epochs=12, layers=4)
    costs = {
        name: plan_cost(_plan(*phases(schedule)), NETWORK) for name, phases in STRATEGIES.items()
    }
    assert (
        costs["head"]
        < costs["top_layers"]
        < costs["gradual"]
        < costs["full"]
        < costs["head_then_full"]
    )
    assert costs["lora"] < costs["full"] == costs["scratch"] == pytest.approx(36)
