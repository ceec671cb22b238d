"""Option 2 of the textbooks: everything learns, from the pretrained start."""

from hf_transfer.strategies.plan import Phase, Schedule


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """One phase in which everything learns."""
    return (Phase("full", ("head", "body"), schedule.epochs, schedule.beside_new_head),)
