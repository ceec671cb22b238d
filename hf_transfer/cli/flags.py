"""The command line of a recipe: a YAML file first, then flags, as the dataclasses of config/."""

import copy
import itertools
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from hf_transfer.config.hub import PushConfig
from hf_transfer.config.run import FINE_TUNING, GROUPS, RunConfig
from hf_transfer.config.training import TrainingFlags
from hf_transfer.config.validate import NOT_SHARDED, validate
from hf_transfer.errors import UserError, one_line, unknown

if TYPE_CHECKING:
    from transformers import HfArgumentParser

YAML_LINES = "one `flag: value` per line"
# What other tools, and transformers before, call a flag of ours.
FOREIGN_NAMES = {
    "batch_size": "per_device_train_batch_size",
    "checkpoint": "model_name_or_path",
    "cpu": "use_cpu",
    "data": "dataset_name",
    "dataset": "dataset_name",
    "epochs": "num_train_epochs",
    "evaluation_strategy": "eval_strategy",
    "freeze": "strategy head",
    "group_by_length": "train_sampling_strategy group_by_length",
    "hub_id": "hub_model_id",
    "label": "label_column",
    "lr": "learning_rate",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "no_cuda": "use_cpu",
    "num_epochs": "num_train_epochs",
    "num_workers": "dataloader_num_workers",
    "out": "output_dir",
    "output": "output_dir",
    "pretrained": "model_name_or_path",
    "save_dir": "output_dir",
    "steps": "max_steps",
    "text": "text_column",
    "train_batch_size": "per_device_train_batch_size",
    "warmup_ratio": "warmup_steps",
    "wd": "weight_decay",
    "workers": "dataloader_num_workers",
}
SEE_HELP = "see --help for the values of each flag"
NAMING = ("model_name_or_path", "model_type", "dataset_name")  # of the output folder
REQUIRED = ("model_name_or_path", "model_type", "dataset_name", "output_dir", "hub_model_id")
HELP = {"-h", "--help", "--help_all"}
log = logging.getLogger(__name__)

SHARDED = ("deepspeed", "fsdp", "fsdp_config")
OPTIONAL_BOOL = (bool | None, "bool | None")
CHECKS = ("minimum", "above", "maximum", "below", "strategies", "modality")  # of a flag's metadata


def read_config(
    task: str | None = None, groups: Sequence[str] = FINE_TUNING, argv: Sequence[str] | None = None
) -> RunConfig:
    """The config that a command line gives for a recipe which offers the flags of `groups`.

    A `--config FILE.yaml` comes first, then the flags on top. `task` is the recipe's task, None
    where `groups` has a flag for it. Raises UserError for unknown keys and flags (with the nearest
    name), missing ones, and what config/validate.py refuses. `--help` prints the flags and exits.
    """
    filled = read_flags([*map(GROUPS.__getitem__, groups)], argv)
    given = dict(zip(groups, filled, strict=True))
    if "compared_transfer" in given:
        given["transfer"] = given.pop("compared_transfer")
    chosen = given.pop("task").task if "task" in given else task
    config = RunConfig(task=chosen or RunConfig.task, groups=tuple(groups), **given)
    validate(config)
    return config


def read_flags(groups: Sequence[type], argv: Sequence[str] | None = None) -> list[Any]:
    """An instance of each dataclass in `groups`, from the command line; see read_config."""
    words = list(sys.argv[1:] if argv is None else argv)
    if HELP.intersection(words):
        _print_help(groups, complete="--help_all" in words)
    complete = _with_training_arguments(groups)
    parser = _make_parser(complete)
    names = [f.name for group in complete for f in fields(group) if f.init]
    words = _unfold_config(words, names) + words
    _refuse_sharding(words)
    words = _with_true(words, complete)
    try:
        *filled, _, extra = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except (
        ValueError,
        ImportError,
    ) as error:  # TrainingArguments' own checks, of --bf16 and others
        raise UserError(one_line(error), SEE_HELP) from error
    _require_no_extra(extra, words, names)
    _name_output(filled)
    _require_given(filled)
    return filled


def _print_help(groups: Sequence[type], complete: bool) -> None:
    """Print the flags and exit; without `complete` those of TrainingArguments stay unlisted.

    Loading TrainingArguments takes seconds, and listing them four screens.
    """
    parser = _make_parser(_with_training_arguments(groups) if complete else groups)
    if TrainingFlags in groups and not complete:
        parser.epilog = (
            "All other flags of transformers.TrainingArguments work, too: --help_all lists them."
        )
    parser.print_help()
    sys.exit(0)


def _with_training_arguments(groups: Sequence[type]) -> list[type]:
    if TrainingFlags not in groups:
        return list(groups)
    from hf_transfer.config.training_arguments import TrainingConfig

    return [TrainingConfig if group is TrainingFlags else group for group in groups]


def _make_parser(groups: Sequence[type]) -> "HfArgumentParser":
    """transformers' parser of dataclasses, whose errors are UserErrors and not a usage text."""
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise _as_user_error(message)

        @staticmethod
        def _parse_dataclass_field(parser: Any, field: Field[Any]) -> None:
            # All of a field's metadata would go to argparse, which does not know our checks.
            shown = copy.copy(field)
            metadata = dict(field.metadata)
            for check in CHECKS:
                metadata.pop(check, None)
            shown.metadata = MappingProxyType(metadata)
            HfArgumentParser._parse_dataclass_field(parser, shown)

    usage = "%(prog)s [--config FILE.yaml] [--FLAG VALUE ...]"
    parser = Parser(groups, usage=usage, allow_abbrev=False)
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="YAML file of flags. Flags on the command line override it.",
    )
    parser.add_argument("--help_all", action="store_true", help="Show all flags and exit.")
    return parser


def _as_user_error(message: str) -> UserError:
    pattern = r"argument (--\w+).*?: invalid choice: '(.*)' \(choose from (.*)\)"
    choice = re.match(pattern, message)
    if choice:
        return unknown(choice[1], choice[2], choice[3].replace("'", "").split(", "))
    return UserError(message.removeprefix("argument "), SEE_HELP)


def _with_true(words: Sequence[str], groups: Sequence[type]) -> list[str]:
    """The words with `true` behind each bare flag that is true, false or not given."""
    flags = {f"--{f.name}" for group in groups for f in fields(group) if f.type in OPTIONAL_BOOL}
    filled: list[str] = []
    for word, after in itertools.zip_longest(words, words[1:], fillvalue="--"):
        filled += [word, "true"] if word in flags and after.startswith("--") else [word]
    return filled


def _refuse_sharding(words: Sequence[str]) -> None:
    """Raise UserError before TrainingArguments asks for a package, to shard what is not sharded."""
    for name in SHARDED:
        if any(word.split("=")[0] == f"--{name}" for word in words):
            raise UserError(f"--{name} is not offered", NOT_SHARDED)


def _require_no_extra(extra: Sequence[str], words: Sequence[str], names: Sequence[str]) -> None:
    if not extra:
        return
    first = extra[0]
    if first.startswith("--"):
        name = first.split("=")[0].removeprefix("--").replace("-", "_")
        if name in FOREIGN_NAMES:
            raise UserError(f"unknown flag {first!r}", f"here it is --{FOREIGN_NAMES[name]}")
        raise unknown("flag", first, [*map("--{}".format, names)])
    before = words[: words.index(first)]
    flag = next((word for word in reversed(before) if word.startswith("--")), "the command")
    raise UserError(f"{flag} takes one value, {first!r} is one too many", SEE_HELP)


def _name_output(filled: Sequence[Any]) -> None:
    """Name the output folder after model and data, where none was given."""
    given: dict[str, str | None] = {}
    for name in NAMING:
        values = [getattr(group, name, None) for group in filled]
        given[name] = next(filter(None, values), None)
    training = next((group for group in filled if isinstance(group, TrainingFlags)), None)
    names = list(filter(None, given.values()))
    if training is None or training.output_dir is not None or len(names) < 2:
        return
    parts = [re.sub(r"[^\w.-]+", "-", Path(name.split(":")[-1]).stem) for name in names]
    training.output_dir = f"out/{'-'.join(parts)}"
    log.info("--output_dir %s", training.output_dir)


def _require_given(filled: Sequence[Any]) -> None:
    for name in REQUIRED:
        missing = [group for group in filled if getattr(group, name, "") is None]
        if missing and (name != "hub_model_id" or isinstance(missing[0], PushConfig)):
            raise UserError(
                f"--{name} is missing", f"give --{name}, or a --config file that has it"
            )


def _unfold_config(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The flags that the file after `--config` stands for."""
    joined = [word.split("=", 1)[1] for word in words if word.startswith("--config=")]
    apart = [after for word, after in itertools.pairwise(words) if word == "--config"]
    unfolded: list[str] = []
    for path in joined + apart:
        for key, value in _read_yaml(Path(path), names).items():
            if isinstance(value, dict):
                value = json.dumps(value)
            if value is not None:
                values = value if isinstance(value, list) else [value]
                unfolded += [f"--{key}", *map(str, values)]
    return unfolded


def _read_yaml(path: Path, names: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"no config file {str(path)!r}",
            "give --config an existing YAML file; recipes/configs has some",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1} of {path}" if mark else str(path)
        raise UserError(f"{place} is not YAML: {error.problem}", YAML_LINES) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}", YAML_LINES) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no flags", YAML_LINES)
    for key in content:
        if key in FOREIGN_NAMES:
            hint = f"here it is {FOREIGN_NAMES[key]}"
            raise UserError(f"unknown key {str(key)!r} in {path}", hint)
        if key not in names:
            refusal = unknown("key", str(key), names)
            raise UserError(f"{refusal.message} in {path}", refusal.hint)
    return content
