"""What a run is asked to do: a dataclass a group of flags. flags.py fills them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from transformers import TrainingArguments

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
ProblemType = Literal[
    "single_label_classification", "multi_label_classification", "regression"
]  # transformers' names
Augmentation = Literal["none", "light", "photo"]

CHECKPOINTS = "checkpoints"  # below the output folder: what a run needs to go on; never published


@dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint to start from."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, or builtin:letters-resnet: the checkpoint to start from."
        },
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the checkpoint."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that the checkpoint brings."}
    )
    keep_head: bool = field(
        default=False,
        metadata={
            "help": "Go on with the checkpoint's own head; its label names must be the dataset's."
        },
    )


@dataclass(frozen=True)
class SourceModelConfig:
    """Which network to pre-train from nothing (recipes/pretrain.py)."""

    _argument_group_name = "source model"

    model_type: str | None = field(
        default=None, metadata={"help": "Architecture, e.g. resnet, vit, bert."}
    )
    config_overrides: str = field(
        default="{}", metadata={"help": "The model config's arguments, as JSON."}
    )
    processor_overrides: str = field(
        default="{}", metadata={"help": "The image processor's arguments, as JSON."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Text only: Hub id or folder whose tokenizer to use."}
    )


@dataclass(frozen=True)
class TaskConfig:
    """Which row of TASKS, for recipes that serve all of them."""

    _argument_group_name = "task"

    task: str = field(
        default="image-classification",
        metadata={"help": "image-classification, text-classification"},
    )


@dataclass(frozen=True)
class DataConfig:
    """Which examples to learn from."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, CSV/JSON/Parquet file, or builtin:digits|letters|docstrings|languages."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "The dataset's configuration."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the dataset."}
    )
    train_split: str = field(default="train", metadata={"help": "Name of the training split."})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Name of the validation split. Default: validation, valid, val or dev."},
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Name of the test split. Default: test."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the pictures. Default: found."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the texts. Default: found."}
    )
    text_pair_column: str | None = field(
        default=None, metadata={"help": "Column of the second text of a pair."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the labels. Default: label, labels."}
    )
    problem_type: ProblemType | None = field(
        default=None,
        metadata={
            "help": "One class a row, any number of labels a row, or a number (regression must be asked for). "
            "Default: lists are several labels, all else is one."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest text in tokens; the rest is cut. Default: what the model takes."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use at most so many training examples."}
    )
    examples_per_class: int | None = field(
        default=None,
        metadata={
            "help": "Learn from so many labels a class, nothing more: no validation split is cut from them."
        },
    )
    on_bad_example: Literal["skip", "raise"] = field(
        default="skip",
        metadata={
            "help": "What to do about a picture that cannot be read, an empty text, a label that is missing or out of "
            "range. skip: leave it out and say so, at most 1 per cent of a split; raise: end the run at the first."
        },
    )


@dataclass(frozen=True)
class TransferConfig:
    """What is learned, in which order."""

    _argument_group_name = "transfer"

    strategy: Strategy = field(
        default="head_then_full",
        metadata={"help": "Which parameters learn, and when (see README)."},
    )
    pooling: Literal["auto", "own", "mean"] = field(
        default="auto",
        metadata={
            "help": "What the head reads: what the class pools by itself, or the mean over all positions. auto: what "
            "a solved head does best on, by cross-validation."
        },
    )
    auto_budget: float = field(
        default=7.0,
        metadata={
            "help": "Most that the trials of --strategy auto may cost, in full fine-tunings (estimated)."
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Each layer learns at this share of the rate of the layer above it."},
    )
    trainable_layers: int | None = field(
        default=None,
        metadata={
            "help": "Layers below the head that --strategy top_layers trains. Default: a quarter."
        },
    )
    cache_frozen: bool = field(
        default=True,
        metadata={"help": "Compute what is frozen once, and keep it for later epochs and runs."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of what is kept. Default: hf_transfer/frozen below HF_HOME."},
    )
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto",
        metadata={"help": "Bits of what is kept. auto: bfloat16 with --bf16, else float32."},
    )
    cached_views: int = field(
        default=0,
        metadata={"help": "Views by --augmentation of each picture that frozen phases learn from."},
    )
    cache_limit_gb: float = field(
        default=20.0, metadata={"help": "Most that this folder may hold."}
    )
    peft_method: str = field(
        default="lora",
        metadata={
            "help": "Method of the adapters of --strategy lora: lora, loha, vera, ia3, or another one of PEFT."
        },
    )
    lora_rank: int = field(default=8, metadata={"help": "Rank of the adapters of --strategy lora."})
    keep_adapter: bool = field(
        default=False,
        metadata={
            "help": "Save the adapter with the head alone, not merged into a copy of the base model."
        },
    )


@dataclass(frozen=True)
class ComparedTransferConfig(TransferConfig):
    """What the strategies of a comparison have in common; --strategies names them, and none is saved."""

    strategy: Strategy = field(default="head_then_full", init=False)
    keep_adapter: bool = field(default=False, init=False)


@dataclass(frozen=True)
class EvaluationConfig:
    """How the result is measured."""

    _argument_group_name = "evaluation"

    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "One class a row: accuracy, f1_macro, log_loss (default), balanced_accuracy, f1_weighted, or a "
            "metric of evaluate. Several labels: f1_micro, f1_macro, exact_match, log_loss (default). "
            "Regression: rmse, mae, r2 (default), pearson, spearman."
        },
    )
    baselines: list[str] = field(
        default_factory=lambda: ["majority"],
        metadata={
            "help": "majority: the most frequent class (regression: the mean); "
            "raw_inputs: a linear model of pixels or words."
        },
    )
    confidence: float = field(
        default=0.95, metadata={"help": "Level of the intervals, between 0 and 1."}
    )


@dataclass(frozen=True)
class StudyConfig:
    """What to compare (recipes/compare_strategies.py)."""

    _argument_group_name = "study"

    strategies: list[str] = field(
        default_factory=lambda: list(get_args(Strategy)),
        metadata={"help": "Strategies to compare."},
    )
    budgets: list[int] = field(
        default_factory=lambda: [1, 10, 100], metadata={"help": "Labels a class to learn from."}
    )
    draws: int = field(
        default=3, metadata={"help": "Random choices of these labels; seeds count up from --seed."}
    )


@dataclass(frozen=True)
class CardConfig:
    """What the card says that no run can know."""

    _argument_group_name = "card"

    license: str | None = field(
        default=None, metadata={"help": "Licence id. Default: the base model's."}
    )
    language: str | None = field(default=None, metadata={"help": "ISO 639 code of the texts."})


@dataclass
class TrainingConfig(TrainingArguments):
    """transformers' TrainingArguments. Where a default is None, strategies/defaults.py decides from data and model."""

    _argument_group_name = "training"

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the result. Must not hold another run."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace what the folder holds."}
    )
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Epochs, of all phases together."}
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak rate of the transferred parameters; half of it behind a head that was solved."
        },
    )
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "Examples a device and step."}
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Examples a device when predicting."}
    )
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of rising rate; below 1 a share of the phase."}
    )
    weight_decay: float | None = field(default=None, metadata={"help": "AdamW's weight decay."})
    eval_strategy: str = field(
        default="steps",
        metadata={"help": "When to look at the validation split, where there is one."},
    )
    eval_steps: float = field(
        default=0.1, metadata={"help": "Every so many steps; below 1 a share of the phase."}
    )
    save_minutes: float = field(
        default=1.0,
        metadata={
            "help": "Keep the state of training so often, below checkpoints/, and never so often that it takes more "
            "than a fiftieth of the time; 0: only as --save_strategy says, and when the run is stopped."
        },
    )
    save_strategy: str = field(
        default="no", metadata={"help": "When else: no, steps (see --save_steps) or epoch."}
    )
    resume: Literal["auto", "never"] = field(
        default="auto",
        metadata={
            "help": "auto: the same command goes on where it was stopped. never: it refuses to."
        },
    )
    on_nan: Literal["stop", "rollback"] = field(
        default="stop",
        metadata={
            "help": "A loss or gradient that is not finite ends the run; rollback: its batch is skipped."
        },
    )
    hub_strategy: str = field(
        default="end", metadata={"help": "Only `end`: we publish once, when all is proved."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "true: log 0 for losses that are not finite."}
    )
    logging_strategy: str = field(
        default="epoch", metadata={"help": "When to log the training loss."}
    )
    train_sampling_strategy: str | None = field(
        default=None,
        metadata={"help": "random, sequential or group_by_length. Default: the last for texts."},
    )
    load_best_model_at_end: bool = field(
        default=True,
        metadata={"help": "Keep the step that is best on validation, where there is such a split."},
    )
    metric_for_best_model: str = field(
        default="loss", metadata={"help": "loss, or accuracy of one class a row; on validation."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop a phase after so many evaluations without improvement."},
    )
    class_weights: Literal["none", "balanced"] = field(
        default="none", metadata={"help": "balanced: rare classes weigh more in the loss."}
    )
    # Here and not in the transfer group: pre-training offers them too.
    average_last: float = field(
        default=0.0,
        metadata={
            "help": "Try the mean of the weights over this share of a phase's last steps, between 0 and 1; it is kept "
            "where it is better on validation."
        },
    )
    wise_ft: bool = field(
        default=False,
        metadata={
            "help": "Try weights between those before and after everything learned (head_then_full, gradual: their "
            "last phase); the best on validation are kept."
        },
    )
    augmentation: Augmentation = field(
        default="none",
        metadata={
            "help": "Change training pictures at random in every step, where the network sees them. light: small "
            "turns, shifts, changes of size; photo: crops and flips."
        },
    )

    def __post_init__(self) -> None:
        # Trainer's own restoring of the best step loads with strict=False and loses weights (transformers issue 43701),
        # and its check wants a checkpoint at every evaluation. Ours keeps the best step itself: training/trainer.py.
        keep_best, self.load_best_model_at_end = self.load_best_model_at_end, False
        super().__post_init__()
        self.load_best_model_at_end = keep_best
        if self.device.type == "cpu":
            self.dataloader_pin_memory = (
                False  # there is no device to pin for, and torch warns at every loader
            )


@dataclass(frozen=True)
class HubTarget:
    """Where a model is pushed."""

    hub_model_id: str | None = field(
        default=None, metadata={"help": "user/name, or name in your own namespace."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "true: only you can see a new repository."}
    )
    hub_token: str | None = field(
        default=None, repr=False, metadata={"help": "Default: the token of `hf auth login`."}
    )
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch to push to. Default: main."}
    )


@dataclass(frozen=True)
class PushConfig(HubTarget):
    """What to publish, and where (recipes/push_to_hub.py)."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of a finished run."})


@dataclass(frozen=True)
class RunConfig:
    """All that a run is asked to do; groups that a recipe does not offer keep their defaults."""

    training: TrainingConfig
    model: ModelConfig = ModelConfig()
    source_model: SourceModelConfig = SourceModelConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    transfer: TransferConfig = TransferConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    study: StudyConfig = StudyConfig()
    card: CardConfig = CardConfig()

    @property
    def output_dir(self) -> Path:
        """The folder of the result."""
        return Path(str(self.training.output_dir))

    @property
    def hub(self) -> HubTarget | None:
        """Where to push, or None if not asked; without --hub_model_id the output folder's name."""
        asked = self.training
        if not asked.push_to_hub:
            return None
        model_id = asked.hub_model_id or self.output_dir.resolve().name
        return HubTarget(model_id, asked.hub_private_repo, asked.hub_token, asked.hub_revision)


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "source_model": SourceModelConfig,
    "task": TaskConfig,
    "data": DataConfig,
    "transfer": TransferConfig,
    "compared": ComparedTransferConfig,
    "evaluation": EvaluationConfig,
    "study": StudyConfig,
    "card": CardConfig,
    "training": TrainingConfig,
}
FINE_TUNING = ("model", "data", "transfer", "evaluation", "card", "training")
PRETRAINING = ("source_model", "task", "data", "evaluation", "card", "training")
COMPARING = ("model", "task", "data", "compared", "evaluation", "study", "training")

# Flags that only some strategies have a use for.
FREEZING = (
    "head",
    "top_layers",
    "gradual",
    "head_then_full",
    "contrastive",
    "auto",
)  # a part, in some phase
CHOOSING = (
    "top_layers",
    "full",
    "gradual",
    "head_then_full",
    "lora",
    "scratch",
    "auto",
)  # a step, by the task's loss
BELONGS: dict[str, tuple[str, ...]] = {
    "peft_method": ("lora",),
    "lora_rank": ("lora",),
    "keep_adapter": ("lora",),
    "trainable_layers": ("top_layers", "auto"),
    "auto_budget": ("auto",),
    "layer_decay": tuple(name for name in get_args(Strategy) if name != "head"),
    "cached_views": FREEZING,
    "frozen_dtype": FREEZING,
    "early_stopping_patience": ("head", *CHOOSING),
    "average_last": CHOOSING,
    "wise_ft": ("head_then_full", "gradual", "auto"),  # everything learns after a head
}


def misplaced(
    transfer: TransferConfig | ComparedTransferConfig,
    training: TrainingConfig,
    strategies: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    """The flags that were given and that none of the strategies has a use for, and which strategies they are for."""
    groups = {flag: transfer if hasattr(transfer, flag) else training for flag in BELONGS}
    given = [
        flag for flag, group in groups.items() if getattr(group, flag) != getattr(type(group), flag)
    ]
    return {
        flag: BELONGS[flag] for flag in given if not set(BELONGS[flag]).intersection(strategies)
    }
