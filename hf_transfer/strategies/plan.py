"""A plan: what is learned, in which order, as data. One engine runs any plan."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["head", "body"]
Solver = Literal["trainer", "convex"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training: which stages learn, at which multiple of the plan's rate, for how many epochs.

    Of the body, the top `layers` learn, or all. A `convex` phase solves a linear head in place of training it in steps.
    With an `adapter` (a method of PEFT) the body's own weights stay and additions of `adapter_rank` learn in its place.
    """

    name: str
    trainable: tuple[Stage, ...]
    epochs: float
    lr_scale: Mapping[Stage, float] = field(default_factory=lambda: {"head": 1.0, "body": 1.0})
    layers: int | None = None
    solver: Solver = "trainer"
    adapter: str | None = None
    adapter_rank: int = 0


@dataclass(frozen=True)
class CacheSettings:
    """Whether what is frozen is computed once and kept, in which folder (None: the usual one), up to which size.

    It is computed as `dtype`, on the rows as they are or on so many augmented `views` of them.
    """

    on: bool = True
    folder: str | None = None
    limit_gb: float = 20.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    views: int = 0


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
    cache: CacheSettings = CacheSettings()


@dataclass(frozen=True)
class Schedule:
    """What a strategy divides among its phases: epochs of all, how a head alone learns, layers that learn, adapters."""

    epochs: float
    head_solver: Solver = "convex"
    trainable_layers: int = 1
    peft_method: str = "lora"
    lora_rank: int = 8


PhasesOf = Callable[[Schedule], tuple[Phase, ...]]
