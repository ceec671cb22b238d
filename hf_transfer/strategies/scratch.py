"""Nothing is transferred: the comparison that shows what transfer is worth."""

from hf_transfer.strategies.plan import Phase, Schedule


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """One phase in which everything learns; its plan starts from random weights."""
    return (Phase("scratch", ("head", "body"), schedule.epochs),)
