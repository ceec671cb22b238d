"""What is learned, in which order: each strategy is a plan and nothing else."""

from hf_transfer.config import TrainingConfig, TransferConfig
from hf_transfer.data.sources import Data
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import parameter_count
from hf_transfer.strategies import defaults, full, head, head_then_full, lora, scratch
from hf_transfer.strategies.plan import PhasesOf, Plan, Schedule

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
    batch_size = training.per_device_train_batch_size or defaults.default_batch_size(examples)
    epochs = training.num_train_epochs or defaults.default_epochs(examples, batch_size)
    rate = training.learning_rate or defaults.default_learning_rate(name, parameter_count(checkpoint.model))
    decay = training.weight_decay if training.weight_decay is not None else defaults.default_weight_decay()
    return Plan(
        strategy=name,
        phases=STRATEGIES[name](Schedule(epochs, config.lora_rank)),
        learning_rate=rate,
        batch_size=batch_size,
        weight_decay=decay,
        init="random" if name == "scratch" else "pretrained",
        reasons=(f"the strategy {name} was asked for by name",),
    )
