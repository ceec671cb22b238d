"""Option 1 of the textbooks: the new output layer learns, all else stays as it was pretrained."""

from collections.abc import Mapping

from hf_transfer.strategies.plan import Phase, Schedule, Stage

# A head that is solved to the best separates few labels without loss, and the phases behind it would learn from noise
# alone. Digits from 4 labels a class, 5 draws: 94.5 with the penalty as it is, 95.1 and 96.0 with 10 and 100 times;
# this lies between. These are draws of `make story`, too.
PENALTY_BEFORE_MORE = 30.0
# Behind it, less is left to learn than from a random head.
AFTER_HEAD: Mapping[Stage, float] = {"head": 0.5, "body": 0.5}


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """One phase in which the head learns: solved, where it is one linear layer."""
    return (Phase("head", ("head",), schedule.epochs, solver=schedule.head_solver),)


def head_phase(schedule: Schedule, share: float, penalty: float = 1.0) -> tuple[Phase, float]:
    """A phase for the head before or after others, and the epochs that are left to these.

    In steps it takes its share of the epochs; solved, it takes none.
    """
    solver, own = schedule.head_solver, schedule.epochs * share
    left = schedule.epochs - (own if solver == "trainer" else 0.0)
    return Phase("head", ("head",), own, schedule.beside_new_head, solver=solver, penalty=penalty), left
