"""A plan: what is learned, in which order, as data. One engine runs any plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["head", "body"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training: which stages learn, at which multiple of the plan's rate, for how many epochs.

    With an `adapter` the body's own weights stay and low-rank additions of `adapter_rank` learn in its place.
    """

    name: str
    trainable: tuple[Stage, ...]
    epochs: float
    lr_scale: Mapping[Stage, float] = field(default_factory=lambda: {"head": 1.0, "body": 1.0})
    adapter: Literal["lora"] | None = None
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
    """What a strategy divides among its phases: epochs of all together, and the rank of adapters."""

    epochs: float
    lora_rank: int


PhasesOf = Callable[[Schedule], tuple[Phase, ...]]
