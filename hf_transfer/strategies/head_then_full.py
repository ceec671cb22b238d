"""First the head, then everything: the body is not torn by the gradients of a random head.

Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features" (arXiv 2202.10054).
"""

from hf_transfer.strategies.head import AFTER_HEAD, PENALTY_BEFORE_MORE, head_phase
from hf_transfer.strategies.plan import Phase, Schedule

HEAD_SHARE = 1 / 3


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """A phase for the head, then one for everything."""
    head, left = head_phase(schedule, HEAD_SHARE, PENALTY_BEFORE_MORE)
    return head, Phase("full", ("head", "body"), left, AFTER_HEAD)
