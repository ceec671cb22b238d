"""What a run is asked to do: dataclasses, filled from a YAML file with flags on top."""

import itertools
import json
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from transformers import HfArgumentParser, TrainingArguments

from hf_transfer.errors import UserError, one_line, unknown

Strategy = Literal["head", "full", "head_then_full", "lora", "scratch"]


@dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint to start from."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id, folder, or builtin:letters-resnet: the checkpoint to start from."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run Python code that the checkpoint brings."})


@dataclass(frozen=True)
class SourceModelConfig:
    """Which network to pre-train from nothing (recipes/pretrain.py)."""

    _argument_group_name = "source model"

    model_type: str | None = field(default=None, metadata={"help": "Architecture, e.g. resnet, vit, bert."})
    config_overrides: str = field(default="{}", metadata={"help": "The model config's arguments, as JSON."})
    processor_overrides: str = field(default="{}", metadata={"help": "The image processor's arguments, as JSON."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Text only: Hub id or folder whose tokenizer to use."}
    )


@dataclass(frozen=True)
class TaskConfig:
    """Which row of TASKS, for recipes that serve all of them."""

    _argument_group_name = "task"

    task: str = field(default="image-classification", metadata={"help": "image-classification, text-classification"})


@dataclass(frozen=True)
class DataConfig:
    """Which examples to learn from."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id, folder, CSV/JSON/Parquet file, or builtin:digits|letters|docstrings."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The dataset's configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    train_split: str = field(default="train", metadata={"help": "Name of the training split."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Name of the validation split. Default: validation, valid, val or dev."}
    )
    test_split: str | None = field(default=None, metadata={"help": "Name of the test split. Default: test."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the pictures. Default: found."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts. Default: found."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text of a pair."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels. Default: label, labels."})
    max_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens; the rest is cut. Default: what the model takes."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use at most so many training examples."})
    examples_per_class: int | None = field(
        default=None,
        metadata={"help": "Learn from so many labels a class, nothing more: no validation split is cut from them."},
    )


@dataclass(frozen=True)
class TransferConfig:
    """What is learned, in which order."""

    _argument_group_name = "transfer"

    strategy: Strategy = field(
        default="head_then_full", metadata={"help": "Which parameters learn, and when (see README)."}
    )
    lora_rank: int = field(default=8, metadata={"help": "Rank of the adapters of --strategy lora."})


@dataclass(frozen=True)
class EvaluationConfig:
    """How the result is measured."""

    _argument_group_name = "evaluation"

    metrics: list[str] = field(
        default_factory=lambda: ["accuracy", "f1_macro", "log_loss"],
        metadata={"help": "accuracy, balanced_accuracy, f1_macro, f1_weighted, log_loss, or a metric of evaluate."},
    )
    baselines: list[str] = field(
        default_factory=lambda: ["majority"],
        metadata={"help": "majority: the most frequent class; raw_inputs: logistic regression on pixels or words."},
    )
    confidence: float = field(default=0.95, metadata={"help": "Level of the intervals, between 0 and 1."})


@dataclass(frozen=True)
class StudyConfig:
    """What to compare (recipes/compare_strategies.py)."""

    _argument_group_name = "study"

    strategies: list[str] = field(
        default_factory=lambda: list(get_args(Strategy)), metadata={"help": "Strategies to compare."}
    )
    budgets: list[int] = field(default_factory=lambda: [1, 10, 100], metadata={"help": "Labels a class to learn from."})
    draws: int = field(default=3, metadata={"help": "Random choices of these labels; seeds count up from --seed."})


@dataclass(frozen=True)
class CardConfig:
    """What the card says that no run can know."""

    _argument_group_name = "card"

    license: str | None = field(default=None, metadata={"help": "Licence id. Default: the base model's."})
    language: str | None = field(default=None, metadata={"help": "ISO 639 code of the texts."})


@dataclass
class TrainingConfig(TrainingArguments):
    """transformers' TrainingArguments. Where a default is None, strategies/defaults.py decides from data and model."""

    _argument_group_name = "training"

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the result. Must not hold another run."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what the folder holds."})
    num_train_epochs: float | None = field(default=None, metadata={"help": "Epochs, of all phases together."})
    learning_rate: float | None = field(default=None, metadata={"help": "Peak rate of the transferred parameters."})
    per_device_train_batch_size: int | None = field(default=None, metadata={"help": "Examples a device and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Examples a device when predicting."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of rising rate; below 1 a share of the phase."})
    weight_decay: float | None = field(default=None, metadata={"help": "AdamW's weight decay."})
    eval_strategy: str = field(
        default="steps", metadata={"help": "When to look at the validation split, where there is one."}
    )
    eval_steps: float = field(default=0.1, metadata={"help": "Every so many steps; below 1 a share of the phase."})
    save_strategy: str = field(default="no", metadata={"help": "Trainer's own checkpoints, below checkpoints/."})
    hub_strategy: str = field(default="end", metadata={"help": "Only `end`: we publish once, when all is proved."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "true: log 0 for losses that are not finite."}
    )
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss."})
    train_sampling_strategy: str | None = field(
        default=None, metadata={"help": "random, sequential or group_by_length. Default: the last for texts."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the step that is best on validation, where there is such a split."}
    )
    metric_for_best_model: str = field(default="loss", metadata={"help": "loss or accuracy, on validation."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop a phase after so many evaluations without improvement."}
    )
    class_weights: Literal["none", "balanced"] = field(
        default="none", metadata={"help": "balanced: rare classes weigh more in the loss."}
    )

    def __post_init__(self) -> None:
        # Trainer's own restoring of the best step loads with strict=False and loses weights (transformers issue 43701),
        # and its check wants a checkpoint at every evaluation. Ours keeps the best step itself: training/trainer.py.
        keep_best, self.load_best_model_at_end = self.load_best_model_at_end, False
        super().__post_init__()
        self.load_best_model_at_end = keep_best
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is no device to pin for, and torch warns at every loader


# Flags of TrainingArguments that a run of ours cannot honour: the values that are harmless, and why no other.
NOT_OFFERED: dict[str, tuple[tuple[Any, ...], str]] = {
    "resume_from_checkpoint": ((None,), "resuming is not offered yet; start again without it"),
    "hub_strategy": (("end",), "a model is published once, in one commit, at the end of its run"),
    "hub_always_push": ((False,), "a model is published once, in one commit, at the end of its run"),
    "auto_find_batch_size": ((False,), "give --per_device_train_batch_size"),
    "remove_unused_columns": ((True,), "columns that the model does not take are always removed"),
    "bf16_full_eval": ((False,), "it would cast the weights that are saved; --bf16 is enough"),
    "fp16_full_eval": ((False,), "it would cast the weights that are saved; --fp16 is enough"),
    "fsdp": ((None,), "models are trained whole on each device for now; leave it out"),
    "deepspeed": ((None,), "models are trained whole on each device for now; leave it out"),
    "metric_for_best_model": (("loss", "accuracy", "eval_loss", "eval_accuracy"), "give loss or accuracy"),
    "label_names": ((None,), "use --label_column"),
    "batch_eval_metrics": ((False,), "metrics are computed over the whole split"),
    "prediction_loss_only": ((False,), "metrics need the predictions"),
    "dataloader_drop_last": ((False,), "every example counts"),
}


@dataclass(frozen=True)
class HubTarget:
    """Where a model is pushed."""

    hub_model_id: str | None = field(default=None, metadata={"help": "user/name, or name in your own namespace."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "true: only you can see a new repository."})
    hub_token: str | None = field(default=None, repr=False, metadata={"help": "Default: the token of `hf auth login`."})
    hub_revision: str | None = field(default=None, metadata={"help": "Branch to push to. Default: main."})


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
    "evaluation": EvaluationConfig,
    "study": StudyConfig,
    "card": CardConfig,
    "training": TrainingConfig,
}
FINE_TUNING = ("model", "data", "transfer", "evaluation", "card", "training")
PRETRAINING = ("source_model", "task", "data", "evaluation", "card", "training")
COMPARING = ("model", "task", "data", "evaluation", "study", "training")
NEEDED = ("model_name_or_path", "model_type", "dataset_name", "output_dir", "hub_model_id")


class _Parser(HfArgumentParser):
    """argparse that raises UserError instead of leaving with a usage text."""

    def error(self, message: str) -> Any:
        choice = re.match(r"argument (--\w+).*?: invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            raise unknown(choice[1], choice[2], choice[3].replace("'", "").split(", "))
        raise UserError(message.removeprefix("argument "), "see --help for what each flag takes")


def parse_config(groups: tuple[str, ...] = FINE_TUNING, argv: list[str] | None = None) -> RunConfig:
    """What the command line asks of a recipe that offers the flags of `groups`.

    A `--config file.yaml` comes first, then the flags on top. Raises UserError for unknown keys and flags (with the
    nearest name), missing ones, values that do not fit, and an output folder that holds another run.
    """
    config = RunConfig(**dict(zip(groups, parse_flags([GROUPS[group] for group in groups], argv), strict=True)))
    _check(config)
    if "study" in groups:
        _check_study(config)
    else:
        _check_output(config)
    return config


def parse_flags(groups: list[type], argv: list[str] | None = None) -> list[Any]:
    """An instance of each dataclass in `groups`, from the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(groups, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="YAML file of flags; flags on the command line win.")
    names = [f.name for group in groups for f in fields(group) if f.init]
    words = _unfold_config(words, names) + words
    try:
        *filled, _, extra = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:  # TrainingArguments' own checks: bf16 with no device for it, ...
        raise UserError(one_line(error), "see --help for what each flag takes") from error
    stray = next((word for word in extra if not word.startswith("--")), None)
    if extra and extra[0] == stray:
        flag = next((w for w in reversed(words[: words.index(stray)]) if w.startswith("--")), "the command")
        raise UserError(f"{flag} takes one value, {stray!r} is one too many", "see --help for what each flag takes")
    if extra:
        raise unknown("flag", next((w for w in extra if w.startswith("--")), extra[0]), [f"--{name}" for name in names])
    for name in NEEDED:
        missing = [group for group in filled if getattr(group, name, "") is None]
        if missing and (name != "hub_model_id" or isinstance(missing[0], PushConfig)):
            raise UserError(f"--{name} is missing", f"give --{name}, or a --config file that has it")
    return filled


def _unfold_config(words: list[str], names: list[str]) -> list[str]:
    """The flags that the file behind `--config` stands for."""
    joined = [w.split("=", 1)[1] for w in words if w.startswith("--config=")]
    apart = [after for word, after in itertools.pairwise(words) if word == "--config"]
    unfolded: list[str] = []
    for path in joined + apart:
        for key, value in _read_yaml(Path(path), names).items():
            unfolded += _as_words(key, value)
    return unfolded


def _read_yaml(path: Path, names: list[str]) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"no config file {str(path)!r}", "give --config an existing YAML file; recipes/configs has some"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}", "one `flag: value` a line") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no flags", "one `flag: value` a line")
    for key in content:
        if key not in names:
            refusal = unknown("key", str(key), names)
            raise UserError(f"{refusal.message} in {path}", refusal.hint)
    return content


def _as_words(key: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(value)]
    values = value if isinstance(value, list) else [value]
    return [f"--{key}", *(str(v) for v in values)]


def _check(config: RunConfig) -> None:
    given = {name: getattr(group, name) for group in vars(config).values() for name in vars(group)}
    choices = {"strategies": get_args(Strategy), "baselines": ("majority", "raw_inputs")}
    for flag, known in choices.items():
        for value in given[flag]:
            if value not in known:
                raise unknown(f"value of --{flag}", value, known)
    for name, (harmless, reason) in NOT_OFFERED.items():
        if given.get(name) not in harmless:
            raise UserError(f"--{name} {given[name]} is not offered", reason)
    if not 0 < config.evaluation.confidence < 1:
        raise UserError(f"--confidence {config.evaluation.confidence} is no level", "a number between 0 and 1, as 0.95")
    for name in ("learning_rate", "num_train_epochs"):
        if given[name] is not None and given[name] <= 0:
            raise UserError(f"--{name} {given[name]} is too small", "give more than 0")
    for name in (
        "per_device_train_batch_size",
        "lora_rank",
        "examples_per_class",
        "max_train_samples",
        "max_length",
        "draws",
    ):
        if given[name] is not None and given[name] < 1:
            raise UserError(f"--{name} {given[name]} is too small", "give 1 or more")
    training = config.training
    watched = training.load_best_model_at_end and training.eval_strategy != "no"
    if training.early_stopping_patience is not None and not watched:
        raise UserError("--early_stopping_patience needs evaluations", "give --eval_strategy, --load_best_model_at_end")


def _check_study(config: RunConfig) -> None:
    if config.training.push_to_hub:
        raise UserError("--push_to_hub does not belong to a comparison", "push a run of the strategy that you choose")
    if "accuracy" not in config.evaluation.metrics:
        raise UserError("a comparison needs the metric accuracy", "add it to --metrics")
    if min(config.study.budgets) < 1:
        raise UserError(f"--budgets {min(config.study.budgets)} is too small", "give 1 or more labels a class")


def _check_output(config: RunConfig) -> None:
    folder = config.output_dir
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {str(folder)!r} is a file", "name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not config.training.overwrite_output_dir:
        held = "holds another run" if (folder / "record.json").exists() else "is not empty"
        raise UserError(f"the output folder {str(folder)!r} {held}", "name another, or give --overwrite_output_dir")
