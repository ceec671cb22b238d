"""Flags: what is transferred, and which layers learn in which order."""

from dataclasses import dataclass
from typing import Literal, get_args

from hf_transfer.config.flag import flag

Strategy = Literal[
    "head",
    "top_layers",
    "full",
    "gradual",
    "head_then_full",
    "contrastive",
    "lora",
    "scratch",
    "auto",
]
STRATEGY_NAMES: tuple[Strategy, ...] = get_args(Strategy)
# Strategies that freeze a part of the network in some phase.
FREEZING = ("head", "top_layers", "gradual", "head_then_full", "contrastive", "auto")
# Strategies whose steps are chosen by the loss of the task.
STEPPED = ("top_layers", "full", "gradual", "head_then_full", "lora", "scratch", "auto")


@dataclass(frozen=True)
class TransferConfig:
    """The strategy and its hyperparameters."""

    _argument_group_name = "transfer"

    strategy: Strategy = flag(
        "head_then_full",
        "Which parameters learn, and in which order; auto chooses by trials on held-out "
        "training rows.",
    )
    pooling: Literal["auto", "own", "mean"] = flag(
        "auto",
        "What the head of a text encoder reads: own, the pooling of its class; mean, the "
        "mean over all tokens; auto, the better one for a linear probe, by cross-validation.",
    )
    auto_budget: float = flag(
        7.0,
        "Maximum cost of the trials of --strategy auto, in full fine-tunings (estimated).",
        above=0,
        strategies=("auto",),
    )
    layer_decay: float = flag(
        1.0,
        "Factor of the learning rate from each layer to the one below it.",
        above=0,
        maximum=1,
        strategies=tuple(name for name in STRATEGY_NAMES if name != "head"),
    )
    trainable_layers: int | None = flag(
        None,
        "Number of layers below the head that --strategy top_layers trains. Default: a "
        "quarter of them.",
        minimum=1,
        strategies=("top_layers", "auto"),
    )
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto",
        "Data type of the frozen layers' pass and of the cached activations. auto: bfloat16 "
        "with --bf16, otherwise float32.",
        strategies=FREEZING,
    )
    cached_views: int = flag(
        0,
        "Number of augmented views of each image (see --augmentation) that frozen phases "
        "learn from.",
        minimum=0,
        strategies=FREEZING,
    )
    peft_method: str = flag(
        "lora",
        "Adapter method of --strategy lora: lora, loha, vera, ia3, or another one of PEFT.",
        strategies=("lora",),
    )
    lora_rank: int = flag(
        8, "Rank of the adapters of --strategy lora.", minimum=1, strategies=("lora",)
    )
    keep_adapter: bool = flag(
        False,
        "Save the adapter and the head only, not merged into a copy of the base model.",
        strategies=("lora",),
    )


@dataclass(frozen=True)
class ComparedTransferConfig(TransferConfig):
    """What the strategies of a comparison share; --strategies names them, and none is saved."""

    strategy: Strategy = flag("head_then_full", "", init=False)
    keep_adapter: bool = flag(False, "", init=False)
