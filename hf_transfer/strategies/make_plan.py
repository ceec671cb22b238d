"""The plan of a strategy by its name: pure, runs nothing."""

import logging
from dataclasses import fields
from typing import TypeVar

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.errors import UserError
from hf_transfer.job import Job
from hf_transfer.models.adapters import require_loadable
from hf_transfer.models.head import parameter_count
from hf_transfer.strategies import defaults
from hf_transfer.strategies.phases import STRATEGIES
from hf_transfer.strategies.plan import HEAD_SCALE, FrozenDtype, Plan, Pooling, Schedule

T = TypeVar("T", int, float)
log = logging.getLogger(__name__)

# Flags of training that a head in closed form does not use.
# fmt: off
STEP_FLAGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "optim", "optim_args",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "early_stopping_patience", "eval_strategy", "eval_steps", "logging_strategy", "logging_steps",
    "train_sampling_strategy", "neftune_noise_alpha", "save_strategy", "save_steps",
)
# fmt: on


def make_plan(transfer: TransferConfig, job: Job, pooling: Pooling = "own") -> Plan:
    """The plan of `transfer.strategy`; what no flag gives comes from strategies/defaults.py.

    Runs nothing. `--strategy auto` and `--pooling auto` need evidence: see studies/choose.py.
    Raises UserError where the strategy cannot be run on this network or these labels.
    """
    name = transfer.strategy
    training = job.training
    if name == "contrastive":
        _require_contrastive(job)
    if transfer.keep_adapter:
        require_loadable(job.model)
    examples = len(job.data.train)
    batch_size = _given(training.per_device_train_batch_size, defaults.default_batch_size(examples))
    step_examples = batch_size * training.world_size * training.gradient_accumulation_steps
    epochs = defaults.default_epochs(name, examples, step_examples)
    schedule = Schedule(
        epochs=_given(training.num_train_epochs, epochs),
        head_solver="trainer" if why_in_steps(job) else "convex",
        layers=job.checkpoint.layers.num_layers,
        trainable_layers=_trainable_layers(transfer, job),
        peft_method=transfer.peft_method,
        lora_rank=transfer.lora_rank,
        head_scale=HEAD_SCALE if job.checkpoint.new_parameters else 1.0,
    )
    phases = STRATEGIES[name](schedule)
    default_rate = defaults.default_learning_rate(name, parameter_count(job.model))
    return Plan(
        strategy=name,
        phases=phases,
        learning_rate=_given(training.learning_rate, default_rate),
        batch_size=batch_size,
        weight_decay=_given(training.weight_decay, defaults.default_weight_decay()),
        init="random" if name == "scratch" else "pretrained",
        layer_decay=transfer.layer_decay,
        pooling=pooling,
        frozen_dtype=frozen_dtype(transfer, training),
        cached_views=transfer.cached_views,
    )


def log_unused_flags(plan: Plan, training: TrainingConfig) -> None:
    """Warn of flags that were given for steps, if the plan has none."""
    if any(phase.solver == "trainer" for phase in plan.phases):
        return
    defaults_of = {each.name: each.default for each in fields(training)}
    given = [name for name in STEP_FLAGS if getattr(training, name) != defaults_of[name]]
    given += ["report_to"] if training.report_to else []
    if given:
        log.warning(
            "the head is solved in closed form, without steps: no effect of %s",
            ", ".join(map("--{}".format, given)),
        )


def frozen_dtype(transfer: TransferConfig, training: TrainingConfig) -> FrozenDtype:
    """The data type of the frozen layers' pass."""
    if transfer.frozen_dtype == "auto":
        return "bfloat16" if training.bf16 else "float32"
    return transfer.frozen_dtype


def why_in_steps(job: Job) -> str | None:
    """Why the head is trained in steps and not in closed form; None if it is not."""
    checkpoint = job.checkpoint
    layer = checkpoint.linear_head
    if layer is None or any(not name.startswith(f"{layer}.") for name in checkpoint.head):
        return "it is more than one linear layer"
    if not checkpoint.new_parameters:
        return "it was kept"
    if job.training.label_smoothing_factor > 0:
        return "--label_smoothing_factor needs steps"
    return None


def _require_contrastive(job: Job) -> None:
    """Raise UserError without classes to pull together, or one place to compare features at."""
    reason = None
    if job.data.task.labels_words:
        reason = "one class per row, and each word of a row has its own"
    elif job.data.problem_type != "single_label_classification":
        reason = f"one class per row, the labels are for {job.data.problem_type}"
    elif job.checkpoint.linear_head is None:
        reason = f"one linear output layer, {type(job.model).__name__} has none"
    if reason:
        raise UserError(f"--strategy contrastive needs {reason}", "give another --strategy")


def _trainable_layers(transfer: TransferConfig, job: Job) -> int:
    depth = job.checkpoint.layers.num_layers
    layers = _given(transfer.trainable_layers, defaults.default_trainable_layers(depth))
    if layers > depth:
        raise UserError(
            f"--trainable_layers {layers}: the model has {depth}",
            f"give 1 to {depth}, or --strategy full",
        )
    return layers


def _given(flag: T | None, default: T) -> T:
    return default if flag is None else flag
