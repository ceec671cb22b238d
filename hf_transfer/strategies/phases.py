"""Every strategy: the phases that it makes of a schedule."""

import math
from collections.abc import Callable, Mapping

from hf_transfer.strategies.plan import Phase, Schedule, Stage

# A head that is solved to the best separates few labels without loss, and the phases after it
# would learn from noise alone. Digits from 4 labels a class, 5 draws: 94.5 with the penalty as it
# is, 95.1 and 96.0 with 10 and 100 times; this lies between. These are draws of `make story`, too.
PENALTY_BEFORE_MORE = 30.0
# After it, less is left to learn than from a random head.
AFTER_HEAD: Mapping[Stage, float] = {"head": 0.5, "body": 0.5}

HEAD_SHARE = 1 / 3  # of the epochs, where a head is trained in steps before or after everything
GRADUAL_HEAD_SHARE = 1 / 6
GRADUAL_QUARTERS = (1, 2, 3)
GRADUAL_FULL_SHARE = 1 / 2  # of the epochs that the head leaves; the parts share the rest


def head(schedule: Schedule) -> tuple[Phase, ...]:
    """Option 1 of the textbooks: the new output layer learns, everything else stays pretrained.

    In closed form, where it is one linear layer.
    """
    return (Phase("head", ("head",), schedule.epochs, solver=schedule.head_solver),)


def full(schedule: Schedule) -> tuple[Phase, ...]:
    """Option 2 of the textbooks: everything learns, from the pretrained start."""
    return (Phase("full", ("head", "body"), schedule.epochs, schedule.beside_new_head),)


def top_layers(schedule: Schedule) -> tuple[Phase, ...]:
    """The head and the layers next to it learn; those below stay pretrained.

    Yosinski et al. 2014 (arXiv 1411.1792): the lower a layer, the more of it serves other tasks.
    """
    rates, layers = schedule.beside_new_head, schedule.trainable_layers
    return (Phase("top_layers", ("head", "body"), schedule.epochs, rates, layers=layers),)


def head_then_full(schedule: Schedule) -> tuple[Phase, ...]:
    """First the head, then everything: gradients of a random head do not distort the body.

    Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features" (arXiv 2202.10054).
    """
    first, left = head_phase(schedule, HEAD_SHARE, PENALTY_BEFORE_MORE)
    return first, Phase("full", ("head", "body"), left, AFTER_HEAD)


def gradual(schedule: Schedule) -> tuple[Phase, ...]:
    """From the top down: the head; the top quarter, half, three quarters with it; everything.

    Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (arXiv
    1801.06146), who unfreeze a layer an epoch; here a quarter of the layers a phase, so that a deep
    network has no more phases than a shallow one.
    """
    first, left = head_phase(schedule, GRADUAL_HEAD_SHARE, PENALTY_BEFORE_MORE)
    quarters = {math.ceil(schedule.layers * quarter / 4) for quarter in GRADUAL_QUARTERS}
    counts = sorted(quarters - {schedule.layers})
    everything = left * GRADUAL_FULL_SHARE if counts else left
    each = (left - everything) / max(1, len(counts))
    parts = [
        Phase(_top_layers_name(count), ("head", "body"), each, AFTER_HEAD, layers=count)
        for count in counts
    ]
    return first, *parts, Phase("full", ("head", "body"), everything, AFTER_HEAD)


def contrastive(schedule: Schedule) -> tuple[Phase, ...]:
    """First the body, by the contrastive loss; then the head on what it has learned.

    The loss pulls together what the head reads of examples of one class, and pushes classes apart:
    Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv 2004.11362); with few labels before
    a simple head, as Tunstall et al. 2022 do for texts (SetFit, arXiv 2209.11055).
    """
    last, left = head_phase(schedule, HEAD_SHARE)
    return Phase("contrastive", ("body",), left, loss="contrastive"), last


def lora(schedule: Schedule) -> tuple[Phase, ...]:
    """Adapters in the body learn, and the new head; merged into the weights at the end.

    Hu et al. 2021 (arXiv 2106.09685), or another method of PEFT.
    """
    method, rank = schedule.peft_method, schedule.lora_rank
    return (Phase(method, ("head", "body"), schedule.epochs, adapter=method, adapter_rank=rank),)


def scratch(schedule: Schedule) -> tuple[Phase, ...]:
    """Nothing is transferred: the comparison that shows what transfer is worth."""
    return (Phase("scratch", ("head", "body"), schedule.epochs),)


STRATEGIES: dict[str, Callable[[Schedule], tuple[Phase, ...]]] = {
    "head": head,
    "top_layers": top_layers,
    "full": full,
    "gradual": gradual,
    "head_then_full": head_then_full,
    "contrastive": contrastive,
    "lora": lora,
    "scratch": scratch,
}


def head_phase(schedule: Schedule, share: float, penalty: float = 1.0) -> tuple[Phase, float]:
    """A phase for the head before or after others, and the epochs that are left to these.

    In steps it takes its share of the epochs; in closed form, none.
    """
    solver, own = schedule.head_solver, schedule.epochs * share
    left = schedule.epochs - (own if solver == "trainer" else 0.0)
    rates = schedule.beside_new_head
    return Phase("head", ("head",), own, rates, solver=solver, penalty=penalty), left


def _top_layers_name(layers: int) -> str:
    return "top layer" if layers == 1 else f"top {layers} layers"
