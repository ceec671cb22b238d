"""What is learned, in which order: each strategy is a plan and nothing else."""

from typing import TypeVar

from hf_transfer.config import TrainingConfig, TransferConfig
from hf_transfer.data.sources import Data
from hf_transfer.models.adapters import require_loadable
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import parameter_count
from hf_transfer.strategies import defaults, full, head, head_then_full, lora, scratch
from hf_transfer.strategies.plan import PhasesOf, Plan, Schedule

T = TypeVar("T", int, float)

STRATEGIES: dict[str, PhasesOf] = {
    "head": head.phases,
    "full": full.phases,
    "head_then_full": head_then_full.phases,
    "lora": lora.phases,
    "scratch": scratch.phases,
}


def choose_plan(config: TransferConfig, checkpoint: Checkpoint, data: Data, training: TrainingConfig) -> Plan:
    """The plan of the strategy that the user names; what no flag says comes from strategies/defaults.py."""
    name, examples = config.strategy, len(data.train)
    if config.keep_adapter:
        require_loadable(checkpoint.model)
    batch_size = _given(training.per_device_train_batch_size, defaults.default_batch_size(examples))
    examples_a_step = batch_size * training.world_size * training.gradient_accumulation_steps
    epochs = _given(training.num_train_epochs, defaults.default_epochs(examples, examples_a_step))
    default_rate = defaults.default_learning_rate(name, parameter_count(checkpoint.model))
    return Plan(
        strategy=name,
        phases=STRATEGIES[name](Schedule(epochs, config.peft_method, config.lora_rank)),
        learning_rate=_given(training.learning_rate, default_rate),
        batch_size=batch_size,
        weight_decay=_given(training.weight_decay, defaults.default_weight_decay()),
        init="random" if name == "scratch" else "pretrained",
        reasons=(f"the strategy {name} was asked for by name",),
    )


def _given(flag: T | None, default: T) -> T:
    return default if flag is None else flag
