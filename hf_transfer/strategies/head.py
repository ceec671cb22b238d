"""Option 1 of the textbooks: the new output layer learns, all else stays as it was pretrained."""

from hf_transfer.strategies.plan import Phase, Schedule


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """One phase in which the head learns: solved, where it is one linear layer."""
    return (Phase("head", ("head",), schedule.epochs, solver=schedule.head_solver),)
