"""The head and the layers next to it learn; those below stay as they were pretrained.

Yosinski et al. 2014 (arXiv 1411.1792): the lower a layer, the more of it serves other tasks.
"""

from hf_transfer.strategies.plan import Phase, Schedule


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """One phase in which the head and the top layers learn."""
    rates, layers = schedule.beside_new_head, schedule.trainable_layers
    return (Phase("top_layers", ("head", "body"), schedule.epochs, rates, layers=layers),)
