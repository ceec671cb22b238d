"""How long each phase of a plan trains, counted as Trainer does: the one place that knows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_transfer.config import TrainingConfig
from hf_transfer.strategies.plan import Phase, Plan, with_epochs
from hf_transfer.training.batches import SampledOrder, StepBatches
from hf_transfer.training.contrastive import balanced_order


@dataclass(frozen=True)
class Pace:
    """How long a phase trains: examples a device and step, and how often as many rows are seen as there are."""

    epochs: float
    steps: int
    batch_size: int
    passes: float


def pace(phase: Phase, plan: Plan, labels: Sequence[int], training: TrainingConfig) -> Pace | None:
    """How long a phase trains on rows with these labels; None where it is solved."""
    if phase.solver == "convex":
        return None
    batch_size, rows_an_epoch = plan.batch_size, len(labels)
    if phase.loss == "contrastive":
        balanced = balanced_order(labels, training)
        batch_size, rows_an_epoch = balanced.batch_size, len(balanced)
    order = SampledOrder(rows_an_epoch, seed=0)
    batches = StepBatches(
        order, batch_size, training.gradient_accumulation_steps, training.world_size
    )
    steps_an_epoch = batches.steps
    steps, epochs = math.ceil(phase.epochs * steps_an_epoch), phase.epochs
    if training.max_steps > 0:
        steps = share_of_steps(phase, plan, training.max_steps)
        epochs = steps / steps_an_epoch
    return Pace(epochs, steps, batch_size, epochs * rows_an_epoch / len(labels))


def share_of_steps(phase: Phase, plan: Plan, steps: int) -> int:
    """The part of `steps` for all phases, as --max_steps asks for, that a phase takes by its part of the epochs.

    Rounded at the borders of the phases, so that the parts add up; none is empty.
    """
    stepped = [each for each in plan.phases if each.solver == "trainer"]
    before = sum(each.epochs for each in stepped[: stepped.index(phase)])
    total = sum(each.epochs for each in stepped)
    return max(1, round(steps * (before + phase.epochs) / total) - round(steps * before / total))


def in_passes(plan: Plan, labels: Sequence[int], training: TrainingConfig) -> Plan:
    """The plan, the epochs of each phase in steps being how often the rows are seen: what `plan_cost` counts."""
    paces = [pace(phase, plan, labels, training) for phase in plan.phases]
    epochs = [
        own.passes if own else phase.epochs for phase, own in zip(plan.phases, paces, strict=True)
    ]
    return with_epochs(plan, epochs)
