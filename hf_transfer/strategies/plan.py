"""A plan: what is learned, in which order, as data. One engine runs any plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["head", "body"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training: which stages learn, at which multiple of the plan's rate, for how many epochs.

    With an `adapter` (a method of PEFT) the body's own weights stay and additions of `adapter_rank` learn in its place.
    """

    name: str
    trainable: tuple[Stage, ...]
    epochs: float
    lr_scale: Mapping[Stage, float] = field(default_factory=lambda: {"head": 1.0, "body": 1.0})
    adapter: str | None = None
    adapter_rank: int = 0


@dataclass(frozen=True)
class Plan:
    """Phases, where the weights come from, the hyperparameters that they share, and why.

    `learning_rate` is that of the transferred parameters; `batch_size` counts examples a device and step.
    """

    strategy: str
    phases: tuple[Phase, ...]
    learning_rate: float
    batch_size: int
    weight_decay: float
    init: Literal["pretrained", "random"] = "pretrained"
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """What a strategy divides among its phases: epochs of all together; and the method of adapters and their rank."""

    epochs: float
    peft_method: str = "lora"
    lora_rank: int = 8


PhasesOf = Callable[[Schedule], tuple[Phase, ...]]
