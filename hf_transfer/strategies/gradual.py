"""From the top down: first the head, then ever more layers with it, at last everything.

Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (arXiv 1801.06146), which thaws a
layer an epoch; here a quarter of the layers a phase, so that a deep network has no more phases than a shallow one.
"""

import math

from hf_transfer.strategies.head import AFTER_HEAD, PENALTY_BEFORE_MORE, head_phase
from hf_transfer.strategies.plan import Phase, Schedule

HEAD_SHARE = 1 / 6
QUARTERS = (1, 2, 3)
FULL_SHARE = 1 / 2  # of what the head leaves; the parts share the rest


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """The head; the top quarter, half and three quarters of the layers with it; everything."""
    head, left = head_phase(schedule, HEAD_SHARE, PENALTY_BEFORE_MORE)
    counts = sorted({math.ceil(schedule.layers * quarter / 4) for quarter in QUARTERS} - {schedule.layers})
    full = left * FULL_SHARE if counts else left
    each = (left - full) / max(1, len(counts))
    parts = [Phase(_name(count), ("head", "body"), each, AFTER_HEAD, layers=count) for count in counts]
    return head, *parts, Phase("full", ("head", "body"), full, AFTER_HEAD)


def _name(layers: int) -> str:
    return "top layer" if layers == 1 else f"top {layers} layers"
