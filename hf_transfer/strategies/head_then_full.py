"""First the head, then everything: the body is not torn by the gradients of a random head.

Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features" (arXiv 2202.10054).
"""

from hf_transfer.strategies.plan import Phase, Schedule

HEAD_SHARE = 1 / 3
HEAD_SCALE = 10.0  # a linear layer on fixed features bears, and needs, a rate far above the body's


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """A phase for the head, then one for everything; a head that is solved takes no epochs from the latter."""
    solver, before = schedule.head_solver, schedule.epochs * HEAD_SHARE
    return (
        Phase("head", ("head",), before, {"head": HEAD_SCALE, "body": 0.0}, solver=solver),
        Phase("full", ("head", "body"), schedule.epochs - (before if solver == "trainer" else 0.0)),
    )
