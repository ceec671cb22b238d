"""Option 1 of the textbooks: the new output layer learns, all else stays as it was pretrained."""

from hf_transfer.strategies.plan import Phase, Schedule

HEAD_SCALE = 10.0  # a linear layer on fixed features bears, and needs, a rate far above the body's


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """One phase in which the head learns: solved, where it is one linear layer."""
    return (Phase("head", ("head",), schedule.epochs, solver=schedule.head_solver),)


def head_first(schedule: Schedule, share: float) -> tuple[Phase, float]:
    """A phase for the head before or after others, and the epochs that are left to these.

    In steps it takes its share of the epochs; solved, it takes none.
    """
    solver, own = schedule.head_solver, schedule.epochs * share
    left = schedule.epochs - (own if solver == "trainer" else 0.0)
    return Phase("head", ("head",), own, {"head": HEAD_SCALE, "body": 0.0}, solver=solver), left
