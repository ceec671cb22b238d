"""Every strategy: the phases that it makes of a schedule."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from hf_transfer.strategies.plan import Phase, Schedule, Stage

# A head that is solved to the optimum separates few examples without loss, and the phases after it
# would learn from noise alone. Digits from 4 labels per class, 5 draws: 94.5 with the penalty as
# cross-validation chooses it, 95.1 and 96.0 with 10 and 100 times; this is between them. They are
# draws of `make story`, too.
PENALTY_BEFORE_BODY = 30.0
# After a trained head less is left to learn than after a random one.
LR_SCALE_AFTER_HEAD: Mapping[Stage, float] = {"head": 0.5, "body": 0.5}

# Shares of the epochs. The first two: of a head that trains in steps before or after the body.
HEAD_EPOCHS = 1 / 3
GRADUAL_HEAD_EPOCHS = 1 / 6
GRADUAL_FULL_EPOCHS = 1 / 2  # of those that the head leaves; the phases between share the rest
GRADUAL_QUARTERS = (1, 2, 3)  # of the layers


def head(schedule: Schedule) -> tuple[Phase, ...]:
    """Option 1 of the textbooks: the new output layer trains, everything else stays pretrained.

    In closed form, where it is one linear layer.
    """
    return (Phase("head", ("head",), schedule.epochs, solver=schedule.head_solver),)


def full(schedule: Schedule) -> tuple[Phase, ...]:
    """Option 2 of the textbooks: everything trains, from pretrained weights."""
    return (Phase("full", ("head", "body"), schedule.epochs, schedule.new_head_lr_scale),)


def top_layers(schedule: Schedule) -> tuple[Phase, ...]:
    """The head and the layers next to it train; those below stay pretrained.

    Yosinski et al. 2014 (arXiv 1411.1792): the lower a layer, the more of it serves other tasks.
    """
    scale = schedule.new_head_lr_scale
    layers = schedule.trainable_layers
    return (Phase("top_layers", ("head", "body"), schedule.epochs, scale, layers),)


def head_then_full(schedule: Schedule) -> tuple[Phase, ...]:
    """First the head, then everything: gradients of a random head do not distort the body.

    Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features" (arXiv 2202.10054).
    """
    first, epochs = head_phase(schedule, HEAD_EPOCHS, PENALTY_BEFORE_BODY)
    return first, Phase("full", ("head", "body"), epochs, LR_SCALE_AFTER_HEAD)


def gradual(schedule: Schedule) -> tuple[Phase, ...]:
    """From the top down: the head; the top quarter, half, three quarters with it; everything.

    Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (arXiv
    1801.06146), who unfreeze a layer per epoch; here a quarter of the layers per phase, so that a
    deep model has no more phases than a shallow one.
    """
    first, left = head_phase(schedule, GRADUAL_HEAD_EPOCHS, PENALTY_BEFORE_BODY)
    quarters = {math.ceil(schedule.layers * quarter / 4) for quarter in GRADUAL_QUARTERS}
    counts = sorted(quarters - {schedule.layers})
    full_epochs = left * GRADUAL_FULL_EPOCHS if counts else left
    epochs = (left - full_epochs) / max(1, len(counts))
    last = Phase("full", ("head", "body"), full_epochs, LR_SCALE_AFTER_HEAD)
    parts = []
    for count in counts:
        name = "top layer" if count == 1 else f"top {count} layers"
        parts.append(replace(last, name=name, epochs=epochs, layers=count))
    return first, *parts, last


def contrastive(schedule: Schedule) -> tuple[Phase, ...]:
    """First the body, by the contrastive loss; then the head on what it has learned.

    The loss pulls the features of examples of one class together, and pushes classes apart: Khosla
    et al. 2020, "Supervised Contrastive Learning" (arXiv 2004.11362); with few labels before a
    simple head, as Tunstall et al. 2022 do for texts (SetFit, arXiv 2209.11055).
    """
    last, epochs = head_phase(schedule, HEAD_EPOCHS)
    return Phase("contrastive", ("body",), epochs, loss="contrastive"), last


def lora(schedule: Schedule) -> tuple[Phase, ...]:
    """Adapters in the body train, and the new head; they are merged into the weights at the end.

    Hu et al. 2021 (arXiv 2106.09685), or another method of PEFT.
    """
    method = schedule.peft_method
    rank = schedule.lora_rank
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
    """A phase that trains the head before or after others, and the epochs that are left to these.

    In steps it takes its share of the epochs; in closed form, none.
    """
    epochs = schedule.epochs * share
    left = schedule.epochs - (epochs if schedule.head_solver == "trainer" else 0.0)
    phase = Phase("head", ("head",), epochs, schedule.new_head_lr_scale)
    return replace(phase, solver=schedule.head_solver, penalty=penalty), left
