"""A plan: what is learned, in which order, as data. One engine runs any plan."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hf_transfer.models.layers import LayerMap
from hf_transfer.record import Trial

# A new layer bears, and needs, a rate far above that of what was pretrained: ten times it is in Caffe's fine-tuning
# (Jia et al. 2014, arXiv 1408.5093) and in "Dive into Deep Learning", section 14.2.
HEAD_SCALE = 10.0

Stage = Literal["head", "body"]
Solver = Literal["trainer", "convex"]
Loss = Literal["task", "contrastive"]
Pooling = Literal["own", "mean"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training: which stages learn, at which multiple of the plan's rate, for how many epochs.

    Of the body, the top `layers` learn, or all. A `convex` phase solves a linear head in place of training it in steps.
    Its penalty is `penalty` times the one that cross-validation chooses: above 1 where later phases go on from there.
    The `contrastive` loss pulls together what the head reads of examples of one class, and pushes apart the rest.
    With an `adapter` (a method of PEFT) the body's own weights stay and additions of `adapter_rank` learn in its place.
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

    `learning_rate` is that of the transferred parameters, times `layer_decay` for each layer that lies between them and
    the head; `batch_size` counts examples a device and step. `pooling` says what the head reads.
    """

    strategy: str
    phases: tuple[Phase, ...]
    learning_rate: float
    batch_size: int
    weight_decay: float
    init: Literal["pretrained", "random"] = "pretrained"
    reasons: tuple[str, ...] = ()
    cache: CacheSettings = CacheSettings()
    layer_decay: float = 1.0
    pooling: Pooling = "own"
    requested: str = ""  # what the user asked for, if it is not the strategy itself
    evidence: tuple[Trial, ...] = ()  # how the strategies did that were tried before
    seconds: float = 0.0  # that choosing took


@dataclass(frozen=True)
class Schedule:
    """What a strategy divides among its phases: epochs of all, how a head alone learns, layers, adapters.

    The network has `layers`, of which `trainable_layers` learn where a strategy trains a part. A head that begins with
    random weights learns at `head_scale` times the rate of the layers below it.
    """

    epochs: float
    head_solver: Solver = "convex"
    layers: int = 1
    trainable_layers: int = 1
    peft_method: str = "lora"
    lora_rank: int = 8
    head_scale: float = HEAD_SCALE

    @property
    def beside_new_head(self) -> dict[Stage, float]:
        """The multiples of the rate where the head begins with the body."""
        return {"head": self.head_scale, "body": 1.0}


def with_epochs(plan: Plan, epochs: Sequence[float]) -> Plan:
    """The plan with other epochs, one number a phase."""
    phases = (replace(phase, epochs=own) for phase, own in zip(plan.phases, epochs, strict=True))
    return replace(plan, phases=tuple(phases))


def in_steps(plan: Plan) -> Plan:
    """The plan with its head trained in steps where it would be solved."""
    return replace(plan, phases=tuple(replace(phase, solver="trainer") for phase in plan.phases))


def learning_rates(
    phase: Phase, plan: Plan, layers: LayerMap, fixed: Collection[str] = ()
) -> dict[str, float]:
    """Name of each parameter that a phase trains -> its peak rate; those in `fixed` never learn.

    Layer k of n learns at the body's rate times layer_decay ** (n + 1 - k), the embeddings as layer 0 (Howard and Ruder
    2018, arXiv 1801.06146; counted as by Clark et al. 2020, arXiv 2003.10555).
    """
    top = len(layers.stages) - 1
    lowest = 0 if phase.layers is None else max(0, top - phase.layers)
    rates = {}
    for name, depth in layers.depths.items():
        stage: Stage = "head" if depth == top else "body"
        if name not in fixed and stage in phase.trainable and depth >= lowest:
            rates[name] = (
                plan.learning_rate * phase.lr_scale[stage] * plan.layer_decay ** (top - depth)
            )
    return rates
