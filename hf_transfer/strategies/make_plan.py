"""The plan of a strategy by its name: pure, runs nothing."""

import logging
from typing import Literal, TypeVar

from hf_transfer.config import TrainingConfig, TransferConfig
from hf_transfer.data.sources import Data
from hf_transfer.errors import UserError
from hf_transfer.models.adapters import require_loadable
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import parameter_count
from hf_transfer.strategies import defaults
from hf_transfer.strategies.phases import STRATEGIES
from hf_transfer.strategies.plan import HEAD_SCALE, CacheSettings, Plan, Schedule, Solver

T = TypeVar("T", int, float)
log = logging.getLogger(__name__)


def make_plan(
    config: TransferConfig, checkpoint: Checkpoint, data: Data, training: TrainingConfig
) -> Plan:
    """The plan of a strategy by its name; what no flag says comes from strategies/defaults.py.

    Runs nothing. `--strategy auto` and `--pooling auto` need evidence: see studies/choose.py.
    """
    name, examples = config.strategy, len(data.train)
    if name == "contrastive":
        _require_contrastive(checkpoint, data)
    if config.keep_adapter:
        require_loadable(checkpoint.model)
    depth = _count_layers(checkpoint)
    layers = _given(config.trainable_layers, defaults.default_trainable_layers(depth))
    if layers > depth:
        raise UserError(
            f"--trainable_layers {layers}: the model has {depth}",
            f"give 1 to {depth}, or --strategy full",
        )
    batch_size = _given(training.per_device_train_batch_size, defaults.default_batch_size(examples))
    examples_a_step = batch_size * training.world_size * training.gradient_accumulation_steps
    epochs = _given(
        training.num_train_epochs, defaults.default_epochs(name, examples, examples_a_step)
    )
    default_rate = defaults.default_learning_rate(name, parameter_count(checkpoint.model))
    in_steps = _why_not_solved(checkpoint, training)
    solver: Solver = "trainer" if in_steps else "convex"
    head_scale = HEAD_SCALE if checkpoint.new_parameters else 1.0
    schedule = Schedule(
        epochs, solver, depth, layers, config.peft_method, config.lora_rank, head_scale
    )
    phases = STRATEGIES[name](schedule)
    reasons = []
    if all(phase.solver == "convex" for phase in phases):
        _say_what_plays_no_part(training)
    if in_steps and any(phase.trainable == ("head",) for phase in phases):
        reasons.append(f"the head is trained in steps, not solved: {in_steps}")
    return Plan(
        strategy=name,
        phases=phases,
        learning_rate=_given(training.learning_rate, default_rate),
        batch_size=batch_size,
        weight_decay=_given(training.weight_decay, defaults.default_weight_decay()),
        init="random" if name == "scratch" else "pretrained",
        reasons=tuple(reasons),
        cache=_cache_settings(config, training),
        layer_decay=config.layer_decay,
    )


def _require_contrastive(checkpoint: Checkpoint, data: Data) -> None:
    """Raise UserError where there are no classes to pull together, or no one place where they could be compared."""
    if data.problem_type != "single_label_classification":
        raise UserError(
            f"--strategy contrastive needs one class a row, the labels are for {data.problem_type}",
            "give another --strategy",
        )
    if checkpoint.linear_head is None:
        raise UserError(
            f"--strategy contrastive needs one linear output layer, {type(checkpoint.model).__name__} has none",
            "give another --strategy",
        )


def _say_what_plays_no_part(training: TrainingConfig) -> None:
    usual = {
        "learning_rate": None,
        "num_train_epochs": None,
        "max_steps": -1,
        "weight_decay": None,
        "per_device_train_batch_size": None,
        "early_stopping_patience": None,
    }
    given = [f"--{name}" for name, default in usual.items() if getattr(training, name) != default]
    if given:
        log.info("the head is solved, not trained in steps: %s plays no part", ", ".join(given))


def _cache_settings(config: TransferConfig, training: TrainingConfig) -> CacheSettings:
    auto: Literal["float32", "bfloat16"] = "bfloat16" if training.bf16 else "float32"
    dtype = auto if config.frozen_dtype == "auto" else config.frozen_dtype
    return CacheSettings(
        config.cache_frozen, config.cache_dir, config.cache_limit_gb, dtype, config.cached_views
    )


def _why_not_solved(checkpoint: Checkpoint, training: TrainingConfig) -> str | None:
    """Why a solver would not do all that is asked of the head; None if it does."""
    layer = checkpoint.linear_head
    if layer is None or any(not name.startswith(f"{layer}.") for name in checkpoint.head):
        return "it is more than one linear layer"
    if not checkpoint.new_parameters:
        return "it was kept"
    return (
        "--label_smoothing_factor asks for steps" if training.label_smoothing_factor > 0 else None
    )


def _count_layers(checkpoint: Checkpoint) -> int:
    return checkpoint.layers.num_layers


def _given(flag: T | None, default: T) -> T:
    return default if flag is None else flag
