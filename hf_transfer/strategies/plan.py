"""A plan: which parameters train, in which order and at which learning rate, as data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hf_transfer.models.layers import LayerMap
from hf_transfer.record import Trial

# A new layer bears, and needs, a learning rate far above that of pretrained layers: ten times as
# high in Caffe's fine-tuning (Jia et al. 2014, arXiv 1408.5093) and in "Dive into Deep Learning",
# section 14.2.
HEAD_SCALE = 10.0

Stage = Literal["head", "body"]
Solver = Literal["trainer", "convex"]
Loss = Literal["task", "contrastive"]
Pooling = Literal["own", "mean"]
FrozenDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Phase:
    """A part of the training: the trainable stages, their learning rates, and the number of epochs.

    `lr_scale` multiplies the plan's learning rate. Of the body the top `layers` train, or all.

    A `convex` phase solves a linear head in closed form in place of training it in steps. Its
    penalty is `penalty` times the one that cross-validation chooses: above 1 where later phases
    train from there. The `contrastive` loss pulls the features of examples of one class together,
    and pushes classes apart. With an `adapter` (a method of PEFT) the body's own weights are
    frozen, and added ones of rank `adapter_rank` train instead.
    """

    name: str
    trainable: tuple[Stage, ...]
    epochs: float
    lr_scale: Mapping[Stage, float] = field(default_factory=lambda: {"head": 1.0, "body": 1.0})
    layers: int | None = None
    solver: Solver = "trainer"
    penalty: float = 1.0
    loss: Loss = "task"
    adapter: str | None = None
    adapter_rank: int = 0


@dataclass(frozen=True)
class Plan:
    """Phases and the hyperparameters that they share: what decides the weights, and nothing else.

    `learning_rate` is that of the transferred parameters, times `layer_decay` for each layer
    between them and the head; `batch_size` counts examples per device and step. `pooling` says what
    the head reads. The activations of frozen layers are computed as `frozen_dtype`, on the rows as
    they are or on `cached_views` augmented views of each.
    """

    strategy: str
    phases: tuple[Phase, ...]
    learning_rate: float
    batch_size: int
    weight_decay: float
    init: Literal["pretrained", "random"] = "pretrained"
    layer_decay: float = 1.0
    pooling: Pooling = "own"
    frozen_dtype: FrozenDtype = "float32"
    cached_views: int = 0


@dataclass(frozen=True)
class Choice:
    """A plan and how it was chosen: what was requested, the reasons, the trials, their seconds."""

    plan: Plan
    requested: str
    reasons: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """What a strategy makes its phases of: the total of epochs, layers, and adapters.

    `head_solver` is that of a phase that trains the head alone. The model has `layers`, of which
    `trainable_layers` train where a strategy trains a part. A head with random weights trains at
    `head_scale` times the learning rate of the layers below it.
    """

    epochs: float
    head_solver: Solver = "convex"
    layers: int = 1
    trainable_layers: int = 1
    peft_method: str = "lora"
    lora_rank: int = 8
    head_scale: float = HEAD_SCALE

    @property
    def new_head_lr_scale(self) -> dict[Stage, float]:
        """The learning rate multiples of a phase in which a new head trains."""
        return {"head": self.head_scale, "body": 1.0}


def with_epochs(plan: Plan, epochs: Sequence[float]) -> Plan:
    """The plan with other epochs, one number for each phase."""
    phases = (replace(phase, epochs=own) for phase, own in zip(plan.phases, epochs, strict=True))
    return replace(plan, phases=tuple(phases))


def without_closed_form(plan: Plan) -> Plan:
    """The plan with its head trained in steps, not solved in closed form."""
    return replace(plan, phases=tuple(replace(phase, solver="trainer") for phase in plan.phases))


def learning_rates(
    phase: Phase, plan: Plan, layers: LayerMap, fixed: Collection[str] = ()
) -> dict[str, float]:
    """Name of each parameter that a phase trains -> its peak learning rate.

    Those in `fixed` never train. Layer k of n has the learning rate of the body times
    layer_decay ** (n + 1 - k), the embeddings as layer 0 (Howard and Ruder 2018, arXiv 1801.06146;
    counted as by Clark et al. 2020, arXiv 2003.10555).
    """
    top = layers.head
    lowest = 0 if phase.layers is None else max(0, top - phase.layers)
    rates = {}
    for name, depth in layers.depths.items():
        stage: Stage = "head" if depth == top else "body"
        if name not in fixed and stage in phase.trainable and depth >= lowest:
            rates[name] = (
                plan.learning_rate * phase.lr_scale[stage] * plan.layer_decay ** (top - depth)
            )
    return rates
