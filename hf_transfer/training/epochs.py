"""The epochs and steps of each phase of a plan, counted as Trainer counts them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.strategies.plan import Phase, Plan, with_epochs
from hf_transfer.training.batches import SampledOrder, StepBatches
from hf_transfer.training.contrastive import balanced_order

MAX_EVALUATIONS = 10  # in a phase
MAX_EVALUATION_SHARE = 0.1  # of the operations of training
TRAINING_COST = 3  # of a row, in forward passes: the backward pass takes twice the operations


@dataclass(frozen=True)
class PhaseLength:
    """The epochs and steps of a phase, and its examples per device and step.

    `passes` is the number of rows that all its steps see, divided by the number of training rows.
    """

    epochs: float
    steps: int
    batch_size: int
    passes: float


def phase_length(
    phase: Phase, plan: Plan, labels: Sequence[int], training: TrainingConfig
) -> PhaseLength | None:
    """The length of a phase on rows with these labels; None if it is solved in closed form."""
    if phase.solver == "convex":
        return None
    batch_size = plan.batch_size
    rows_per_epoch = len(labels)
    if phase.loss == "contrastive":
        balanced = balanced_order(labels, training)
        batch_size = balanced.batch_size
        rows_per_epoch = len(balanced)
    shards = (training.gradient_accumulation_steps, training.world_size)
    steps_per_epoch = StepBatches(SampledOrder(rows_per_epoch, 0), batch_size, *shards).steps
    steps = math.ceil(phase.epochs * steps_per_epoch)
    epochs = phase.epochs
    if training.max_steps > 0:
        steps = phase_max_steps(phase, plan, training.max_steps)
        epochs = steps / steps_per_epoch
    return PhaseLength(epochs, steps, batch_size, epochs * rows_per_epoch / len(labels))


def phase_max_steps(phase: Phase, plan: Plan, max_steps: int) -> int:
    """The part of --max_steps, a number for all phases, that a phase has by its part of the epochs.

    Rounded at the borders of the phases, so that the parts add up; at least 1.
    """
    stepped = [each for each in plan.phases if each.solver == "trainer"]
    total = sum(each.epochs for each in stepped)
    before = sum(each.epochs for each in stepped[: stepped.index(phase)])
    start = round(max_steps * before / total)
    end = round(max_steps * (before + phase.epochs) / total)
    return max(1, end - start)


def affordable_eval_steps(steps: int, trained_rows: int, validation_rows: int) -> int:
    """Steps between two evaluations: ten in a phase, fewer where they would cost too much.

    They take at most a tenth of the operations of training on `trained_rows`, which counts forward
    and backward, but there is one.
    """
    affordable = MAX_EVALUATION_SHARE * TRAINING_COST * trained_rows / validation_rows
    return math.ceil(steps / max(1, min(MAX_EVALUATIONS, int(affordable))))


def with_passes_as_epochs(plan: Plan, labels: Sequence[int], training: TrainingConfig) -> Plan:
    """The plan whose epochs are passes over the training rows, as `plan_cost` counts them.

    A phase that is solved in closed form keeps its epochs.
    """
    epochs = []
    for phase in plan.phases:
        length = phase_length(phase, plan, labels, training)
        epochs.append(length.passes if length else phase.epochs)
    return with_epochs(plan, epochs)
