"""Epochs and steps of each phase of a plan: counted by hand."""

from pathlib import Path
from typing import Any

import pytest

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.strategies.plan import Phase, Plan
from hf_transfer.training.epochs import (
    affordable_eval_steps,
    phase_length,
    phase_max_steps,
    with_passes_as_epochs,
)

HEAD = Phase("head", ("head",), 1.0, solver="convex")
TOP = Phase("top", ("head", "body"), 1.0)
FULL = Phase("full", ("head", "body"), 3.0)
CONTRASTIVE = Phase("contrastive", ("body",), 2.0, loss="contrastive")


def _plan(*phases: Phase, batch_size: int = 8) -> Plan:
    return Plan("full", phases, learning_rate=1e-3, batch_size=batch_size, weight_decay=0.0)


@pytest.fixture
def training(tmp_path: Path) -> Any:
    """A function that makes training arguments of those that a test is about."""
    return lambda **given: TrainingConfig(output_dir=str(tmp_path), use_cpu=True, **given)


def test_the_last_batch_of_an_epoch_may_be_smaller(training: Any) -> None:
    found = phase_length(FULL, _plan(FULL), [0, 1] * 10, training())
    assert (found.epochs, found.steps, found.batch_size, found.passes) == (3.0, 9, 8, 3.0)


def test_accumulated_batches_are_one_step(training: Any) -> None:
    assert (
        phase_length(FULL, _plan(FULL), [0, 1] * 16, training(gradient_accumulation_steps=2)).steps
        == 6
    )


def test_a_part_of_an_epoch_has_a_part_of_its_steps(training: Any) -> None:
    half = Phase("full", ("head", "body"), 0.5)
    assert phase_length(half, _plan(half), [0, 1] * 10, training()).steps == 2


def test_a_solved_phase_has_no_length_and_keeps_its_epochs(training: Any) -> None:
    plan = _plan(HEAD, FULL)
    assert phase_length(HEAD, plan, [0, 1] * 10, training()) is None
    assert with_passes_as_epochs(plan, [0, 1] * 10, training()) == plan


def test_max_steps_replaces_the_epochs(training: Any) -> None:
    plan = _plan(HEAD, TOP, FULL)
    found = [phase_length(phase, plan, [0, 1] * 16, training(max_steps=8)) for phase in (TOP, FULL)]
    assert [(each.steps, each.epochs, each.passes) for each in found] == [
        (2, 0.5, 0.5),
        (6, 1.5, 1.5),
    ]
    assert [
        phase.epochs
        for phase in with_passes_as_epochs(plan, [0, 1] * 16, training(max_steps=8)).phases
    ] == [1.0, 0.5, 1.5]


@pytest.mark.parametrize("steps", range(3, 20))
def test_the_parts_of_the_steps_add_up(steps: int) -> None:
    phases = [
        Phase(name, ("head", "body"), epochs)
        for name, epochs in (("a", 1.0), ("b", 1.5), ("c", 2.0))
    ]
    parts = [phase_max_steps(phase, _plan(*phases), steps) for phase in phases]
    assert sum(parts) == steps
    assert parts == sorted(parts)


def test_a_phase_has_a_step_however_small_its_part_is() -> None:
    short = Phase("short", ("head",), 0.01)
    assert phase_max_steps(short, _plan(short, FULL), 4) == 1


def test_batches_with_members_of_every_class_see_small_classes_again(training: Any) -> None:
    # 5 classes of 2 rows: a batch has 4 members of each, so that 10 rows are seen twice in an epoch.
    found = phase_length(CONTRASTIVE, _plan(CONTRASTIVE), list(range(5)) * 2, training())
    assert (found.epochs, found.steps, found.batch_size, found.passes) == (2.0, 2, 20, 4.0)
    assert (
        with_passes_as_epochs(_plan(CONTRASTIVE), list(range(5)) * 2, training()).phases[0].epochs
        == 4.0
    )


@pytest.mark.parametrize(
    ("steps", "batch_size", "validation", "expected"),
    [
        (43, 16, 120, 43),  # one epoch: 0.3 x 688 / 120 = 1 evaluation
        (215, 16, 120, 27),  # five epochs: 8
        (4300, 16, 120, 430),  # no more than ten
        (3, 16, 3, 1),  # four can be afforded, three have a step
        (2, 4, 5000, 2),  # at least one, at the end
    ],
)
def test_evaluations_take_at_most_a_tenth_of_the_operations_of_training(
    steps: int, batch_size: int, validation: int, expected: int
) -> None:
    assert affordable_eval_steps(steps, steps * batch_size, validation) == expected
