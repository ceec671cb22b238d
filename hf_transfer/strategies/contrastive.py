"""First the body, so that what the head reads lies close within a class and apart between classes; then the head.

Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv 2004.11362); with few labels before a simple head, as
Tunstall et al. 2022 do for texts (SetFit, arXiv 2209.11055).
"""

from hf_transfer.strategies.head import head_phase
from hf_transfer.strategies.plan import Phase, Schedule

HEAD_SHARE = 1 / 3


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """A phase for the body alone by the contrastive loss, then one for the head."""
    head, left = head_phase(schedule, HEAD_SHARE)
    return Phase("contrastive", ("body",), left, loss="contrastive"), head
