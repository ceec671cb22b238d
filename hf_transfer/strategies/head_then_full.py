"""First the head, then everything: the body is not torn by the gradients of a random head.

Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features" (arXiv 2202.10054).
"""

from hf_transfer.strategies.head import head_first
from hf_transfer.strategies.plan import Phase, Schedule

HEAD_SHARE = 1 / 3


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """A phase for the head, then one for everything."""
    head, left = head_first(schedule, HEAD_SHARE)
    return head, Phase("full", ("head", "body"), left)
