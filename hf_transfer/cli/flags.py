"""The command line: a YAML file first, then the flags on top, checked, as dataclasses of config.py."""

import copy
import itertools
import json
import os
import re
import sys
from argparse import ArgumentParser
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

import yaml
from transformers import HfArgumentParser

from hf_transfer.config import (
    CHECKPOINTS,
    FINE_TUNING,
    GROUPS,
    ComparedTransferConfig,
    PushConfig,
    RunConfig,
    Strategy,
    misplaced,
)
from hf_transfer.errors import UserError, one_line, unknown

OWN_METADATA = ("modality", "minimum")  # of the fields of config.py
NEEDED = ("model_name_or_path", "model_type", "dataset_name", "output_dir", "hub_model_id")

# Flags of TrainingArguments that a run of ours cannot honour: the values that are harmless, and why no other.
NOT_OFFERED: dict[str, tuple[tuple[Any, ...], str]] = {
    "resume_from_checkpoint": ((None,), "the same command goes on by itself; see --resume"),
    "restore_callback_states_from_checkpoint": (
        (False,),
        "all that a run needs is kept and restored",
    ),
    "ignore_data_skip": ((False,), "a run goes on with the examples that it has not seen"),
    "enable_jit_checkpoint": ((False,), "SIGTERM and Ctrl-C keep the state already"),
    "save_total_limit": ((None,), "the newest state and the one before it are kept"),
    "save_only_model": ((False,), "a run could not go on from it; the model is saved at the end"),
    "save_strategy": (
        ("no", "steps", "epoch"),
        "the best step is part of every state; give no, steps or epoch",
    ),
    "train_sampling_strategy": (
        (None, "random", "sequential", "group_by_length"),
        "give random, sequential or group_by_length",
    ),
    "hub_strategy": (("end",), "a model is published once, in one commit, at the end of its run"),
    "hub_always_push": (
        (False,),
        "a model is published once, in one commit, at the end of its run",
    ),
    "auto_find_batch_size": ((False,), "give --per_device_train_batch_size"),
    "remove_unused_columns": ((True,), "columns that the model does not take are always removed"),
    "bf16_full_eval": ((False,), "it would cast the weights that are saved; --bf16 is enough"),
    "fp16_full_eval": ((False,), "it would cast the weights that are saved; --fp16 is enough"),
    "fsdp": ((None,), "models are trained whole on each device for now; leave it out"),
    "deepspeed": ((None,), "models are trained whole on each device for now; leave it out"),
    "metric_for_best_model": (
        ("loss", "accuracy", "eval_loss", "eval_accuracy"),
        "give loss or accuracy",
    ),
    "label_names": ((None,), "use --label_column"),
    "batch_eval_metrics": ((False,), "metrics are computed over the whole split"),
    "prediction_loss_only": ((False,), "metrics need the predictions"),
    "dataloader_drop_last": ((False,), "every example counts"),
}


# What `accelerate launch` says of models that are cut in pieces; on CPUs, where it could be tried, it does not do it.
SHARDING = {"--use_fsdp": "ACCELERATE_USE_FSDP", "--use_deepspeed": "ACCELERATE_USE_DEEPSPEED"}


class _Parser(HfArgumentParser):
    """argparse that raises UserError instead of leaving with a usage text."""

    @staticmethod
    def _parse_dataclass_field(parser: ArgumentParser, field: Field[Any]) -> None:
        # HfArgumentParser hands all metadata to argparse, which refuses the keys that are ours.
        shown: Any = copy.copy(field)
        shown.metadata = {k: v for k, v in field.metadata.items() if k not in OWN_METADATA}
        HfArgumentParser._parse_dataclass_field(parser, shown)

    def error(self, message: str) -> Any:
        choice = re.match(
            r"argument (--\w+).*?: invalid choice: '(.*)' \(choose from (.*)\)", message
        )
        if choice:
            raise unknown(choice[1], choice[2], choice[3].replace("'", "").split(", "))
        raise UserError(message.removeprefix("argument "), "see --help for what each flag takes")


def parse_config(groups: tuple[str, ...] = FINE_TUNING, argv: list[str] | None = None) -> RunConfig:
    """What the command line asks of a recipe that offers the flags of `groups`.

    A `--config file.yaml` comes first, then the flags on top. Raises UserError for unknown keys and flags (with the
    nearest name), missing ones, values that do not fit, and an output folder that holds another run.
    """
    filled = parse_flags([GROUPS[group] for group in groups], argv)
    places = ["transfer" if group == "compared" else group for group in groups]
    config = RunConfig(**dict(zip(places, filled, strict=True)))
    _check(config)
    alone = config.transfer.strategy if "transfer" in groups else "scratch"  # pre-training
    _check_transfer(config, config.study.strategies if "study" in groups else [alone])
    if "study" in groups:
        _check_study(config)
    else:
        _check_output(config)
    return config


def parse_flags(groups: list[type], argv: list[str] | None = None) -> list[Any]:
    """An instance of each dataclass in `groups`, from the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(groups, allow_abbrev=False)
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="YAML file of flags; flags on the command line win."
    )
    names = [f.name for group in groups for f in fields(group) if f.init]
    words = _unfold_config(words, names) + words
    try:
        *filled, _, extra = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except (
        ValueError,
        ImportError,
    ) as error:  # TrainingArguments' own checks: bf16 with no device for it, ...
        raise UserError(one_line(error), "see --help for what each flag takes") from error
    stray = next((word for word in extra if not word.startswith("--")), None)
    if extra and extra[0] == stray:
        flag = next(
            (w for w in reversed(words[: words.index(stray)]) if w.startswith("--")), "the command"
        )
        raise UserError(
            f"{flag} takes one value, {stray!r} is one too many",
            "see --help for what each flag takes",
        )
    if extra:
        raise unknown(
            "flag",
            next((w for w in extra if w.startswith("--")), extra[0]),
            [f"--{name}" for name in names],
        )
    for name in NEEDED:
        missing = [group for group in filled if getattr(group, name, "") is None]
        if missing and (name != "hub_model_id" or isinstance(missing[0], PushConfig)):
            raise UserError(
                f"--{name} is missing", f"give --{name}, or a --config file that has it"
            )
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
            f"no config file {str(path)!r}",
            "give --config an existing YAML file; recipes/configs has some",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not YAML: {one_line(error)}", "one `flag: value` a line"
        ) from error
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
    for name, variable in SHARDING.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(f"{name} of the launcher is not offered", NOT_OFFERED["fsdp"][1])
    if not 0 < config.evaluation.confidence < 1:
        raise UserError(
            f"--confidence {config.evaluation.confidence} is no level",
            "a number between 0 and 1, as 0.95",
        )
    for name in (
        "learning_rate",
        "num_train_epochs",
        "cache_limit_gb",
        "auto_budget",
        "layer_decay",
    ):
        if given[name] is not None and given[name] <= 0:
            raise UserError(f"--{name} {given[name]} is too small", "give more than 0")
    if given["save_minutes"] < 0:
        raise UserError(f"--save_minutes {given['save_minutes']} is too small", "give 0 or more")
    for name in (
        "per_device_train_batch_size",
        "lora_rank",
        "trainable_layers",
        "examples_per_class",
        "max_train_samples",
        "max_length",
        "draws",
    ):
        if given[name] is not None and given[name] < 1:
            raise UserError(f"--{name} {given[name]} is too small", "give 1 or more")
    if config.transfer.layer_decay > 1:
        raise UserError(
            f"--layer_decay {config.transfer.layer_decay} is too large",
            "1 at most: lower layers learn less",
        )
    training = config.training
    if not 0 <= training.average_last <= 1:
        raise UserError(
            f"--average_last {training.average_last} is no share",
            "a number between 0 and 1, as 0.25",
        )
    watched = training.load_best_model_at_end and training.eval_strategy != "no"
    if training.early_stopping_patience is not None and not watched:
        raise UserError(
            "--early_stopping_patience needs evaluations",
            "give --eval_strategy, --load_best_model_at_end",
        )


def _check_transfer(config: RunConfig, strategies: list[str]) -> None:
    for flag, fitting in misplaced(config.transfer, config.training, strategies).items():
        named = "strategies" if isinstance(config.transfer, ComparedTransferConfig) else "strategy"
        not_among = f"--{flag} does not belong to --{named} {' '.join(strategies)}"
        raise UserError(not_among, f"leave it out; it is for {', '.join(fitting)}")
    views = config.transfer.cached_views
    if views and not config.transfer.cache_frozen:
        raise UserError(f"--cached_views {views} with --cache_frozen false", "give one of them")
    if views < 0 or (views and config.training.augmentation == "none"):
        raise UserError(
            f"--cached_views {views} has no views to keep",
            "give --augmentation light, or photo, too",
        )
    if config.transfer.keep_adapter and config.transfer.pooling == "mean":
        raise UserError(
            "--keep_adapter with --pooling mean",
            "the base model has no layer for the mean: give one of them",
        )
    if config.model.keep_head and "scratch" in strategies:
        raise UserError(
            "--keep_head does not belong to --strategy scratch", "from scratch nothing is kept"
        )


def _check_study(config: RunConfig) -> None:
    if config.training.push_to_hub:
        raise UserError(
            "--push_to_hub does not belong to a comparison",
            "push a run of the strategy that you choose",
        )
    if config.data.examples_per_class is not None:
        raise UserError("--examples_per_class does not belong to a comparison", "give --budgets")
    if config.data.problem_type not in (None, "single_label_classification"):
        raise UserError(
            f"a comparison needs one class a row, not --problem_type {config.data.problem_type}",
            "it is over labels a class, by accuracy; run the recipe of the task once a strategy",
        )
    if config.evaluation.metrics is not None and "accuracy" not in config.evaluation.metrics:
        raise UserError("a comparison needs the metric accuracy", "add it to --metrics")
    if min(config.study.budgets) < 1:
        raise UserError(
            f"--budgets {min(config.study.budgets)} is too small", "give 1 or more labels a class"
        )


def _check_output(config: RunConfig) -> None:
    folder = config.output_dir
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {str(folder)!r} is a file", "name a folder")
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # What a run needs to go on is there, or a run that was killed before there was any; whose, is seen later.
    of_ours = inside == {CHECKPOINTS} or any((folder / CHECKPOINTS).glob("*.json"))
    of_ours = of_ours or any((folder / CHECKPOINTS).glob("state-*"))
    if inside and not of_ours and not config.training.overwrite_output_dir:
        held = "holds another run" if (folder / "record.json").exists() else "is not empty"
        raise UserError(
            f"the output folder {str(folder)!r} {held}",
            "name another, or give --overwrite_output_dir",
        )
