from dataclasses import replace
from typing import get_args

import pytest

from hf_transfer.config import Strategy
from hf_transfer.strategies import STRATEGIES, defaults
from hf_transfer.strategies.plan import Schedule

SCHEDULE = Schedule(epochs=12, trainable_layers=2, lora_rank=4)


def test_every_strategy_that_can_be_asked_for_is_there() -> None:
    assert {*STRATEGIES, "auto"} == set(get_args(Strategy))


def test_head_trains_the_head_alone() -> None:
    (phase,) = STRATEGIES["head"](SCHEDULE)
    assert (phase.trainable, phase.epochs) == (("head",), 12)


def test_head_then_full_first_trains_the_head_at_a_higher_rate() -> None:
    head, full = STRATEGIES["head_then_full"](SCHEDULE)
    assert (head.trainable, full.trainable) == (("head",), ("head", "body"))
    assert head.lr_scale["head"] > full.lr_scale["head"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_phases_that_are_stepped_share_the_epochs_that_were_asked_for(name: str) -> None:
    in_steps = STRATEGIES[name](replace(SCHEDULE, head_solver="trainer"))
    assert sum(phase.epochs for phase in in_steps) == pytest.approx(12)
    solved = STRATEGIES[name](SCHEDULE)
    assert sum(phase.epochs for phase in solved if phase.solver == "trainer") in (0, pytest.approx(12))


def test_a_head_alone_is_solved_where_it_can_be() -> None:
    phases = [phase for name in STRATEGIES for phase in STRATEGIES[name](SCHEDULE)]
    assert len(phases) > len(STRATEGIES)
    assert all((phase.solver == "convex") == (phase.trainable == ("head",)) for phase in phases)


def test_top_layers_trains_as_many_as_asked() -> None:
    (phase,) = STRATEGIES["top_layers"](SCHEDULE)
    assert (phase.trainable, phase.layers) == (("head", "body"), 2)
    assert [defaults.default_trainable_layers(layers) for layers in (1, 4, 6, 12, 24)] == [1, 1, 2, 3, 6]


def test_lora_carries_its_rank() -> None:
    (phase,) = STRATEGIES["lora"](SCHEDULE)
    assert (phase.adapter, phase.adapter_rank) == ("lora", 4)


def test_smaller_networks_learn_at_higher_rates_within_bounds() -> None:
    rates = [defaults.default_learning_rate("full", parameters) for parameters in (3e5, 2.2e7, 1.1e8, 7e9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(1e-3, rel=0.1)
    assert rates[2] == pytest.approx(5e-5)
    assert rates[3] == 1e-5


@pytest.mark.parametrize(("examples", "most"), [(10, 200), (100, 200), (1000, 50), (100_000, 3)])
def test_few_examples_are_seen_often_and_many_a_few_times(examples: int, most: int) -> None:
    epochs = defaults.default_epochs(examples, defaults.default_batch_size(examples))
    assert 3 <= epochs <= most
