"""The command line of a recipe: a YAML file first, then flags, as the dataclasses of config/."""

import copy
import itertools
import json
import logging
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from hf_transfer.cli.foreign_names import FOREIGN_NAMES
from hf_transfer.cli.parser_errors import as_user_error
from hf_transfer.config.hub import PushConfig
from hf_transfer.config.run import FINE_TUNING, GROUPS, RunConfig
from hf_transfer.config.study import StudyConfig
from hf_transfer.config.training import TrainingFlags
from hf_transfer.config.validate import NOT_SHARDED, validate
from hf_transfer.errors import UserError, one_line, unknown

if TYPE_CHECKING:
    from transformers import HfArgumentParser

YAML_LINES = "one `flag: value` per line"
SEE_HELP = "see --help for the values of each flag"
NAMING = ("model_name_or_path", "model_type", "dataset_name")  # of the output folder
REQUIRED = ("model_name_or_path", "model_type", "dataset_name", "output_dir", "hub_model_id")
HELP = {"-h", "--help", "--help_all"}
SHARDED = ("deepspeed", "fsdp", "fsdp_config")
SWITCHES = (bool, "bool", bool | None, "bool | None")  # types of flags that are true or false
# Flags that take a JSON object, with an example.
JSON_FLAGS = {
    "accelerator_config": '{"split_batches": true}',
    "activation_checkpointing_kwargs": '{"use_reentrant": false}',
    "gradient_checkpointing_kwargs": '{"use_reentrant": false}',
    "liger_kernel_config": '{"rope": true}',
    "lr_scheduler_kwargs": '{"num_cycles": 2}',
}
FILE_ENDINGS = re.compile(r"(\.(csv|tsv|txt|jsonl?|parquet|zip|gz))+$", re.IGNORECASE)
CHECKS = ("minimum", "above", "maximum", "below", "strategies", "modality")  # of a flag's metadata

log = logging.getLogger(__name__)


def read_config(
    task: str | None = None,
    groups: Sequence[str] = FINE_TUNING,
    argv: Sequence[str] | None = None,
    writes: bool = True,
) -> RunConfig:
    """The config that a command line gives for a recipe which offers the flags of `groups`.

    A `--config FILE.yaml` comes first, then the flags on top. `task` is the recipe's task, None
    where `groups` has a flag for it; unless it `writes`, the output folder may be any. Raises
    UserError for unknown keys and flags (with the nearest name), missing ones, and what
    config/validate.py refuses. `--help` prints the flags and exits.
    """
    filled = read_flags([*map(GROUPS.__getitem__, groups)], argv, writes)
    given = dict(zip(groups, filled, strict=True))
    if "compared_transfer" in given:
        given["transfer"] = given.pop("compared_transfer")
    chosen = given.pop("task").task if "task" in given else task
    config = RunConfig(task=chosen or RunConfig.task, groups=tuple(groups), **given)
    validate(config, writes)
    return config


def read_flags(
    groups: Sequence[type], argv: Sequence[str] | None = None, writes: bool = True
) -> list[Any]:
    """An instance of each dataclass in `groups`, from the command line; see read_config."""
    words = list(sys.argv[1:] if argv is None else argv)
    if HELP.intersection(words):
        _print_help(groups, complete="--help_all" in words)
    complete = _with_training_arguments(groups)
    parser = _make_parser(complete)
    names = [f.name for group in complete for f in fields(group) if f.init]
    switches = {f.name for group in complete for f in fields(group) if f.type in SWITCHES}
    words = _unfold_config(words, names, switches) + words
    _refuse_sharding(words)
    _require_json(words)
    words = _with_true(words, switches)
    try:
        *filled, _, extra = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    # TrainingArguments' own checks, of --bf16 and others; TypeError: a key of a JSON object.
    except (ValueError, ImportError, TypeError) as error:
        raise UserError(one_line(error), SEE_HELP) from error
    _require_no_extra(extra, words, names)
    _name_output(filled, logs=writes)
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
            raise as_user_error(message, SEE_HELP)

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


def _with_true(words: Sequence[str], switches: Collection[str]) -> list[str]:
    """The words with `true` behind each bare flag that is true or false."""
    filled: list[str] = []
    for word, after in itertools.zip_longest(words, words[1:], fillvalue="--"):
        is_bare = word.removeprefix("--").replace("-", "_") in switches and after.startswith("--")
        filled += [word, "true"] if word.startswith("--") and is_bare else [word]
    return filled


def _refuse_sharding(words: Sequence[str]) -> None:
    """Raise UserError before TrainingArguments asks for a package, to shard what is not sharded."""
    for name in SHARDED:
        if any(word.split("=")[0] == f"--{name}" for word in words):
            raise UserError(f"--{name} is not offered", NOT_SHARDED)


def _require_json(words: Sequence[str]) -> None:
    """Raise UserError for a flag whose value is not the JSON object that it must be."""
    for flag, value in itertools.pairwise(words):
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in JSON_FLAGS and not _is_json_object(value):
            is_file = name == "accelerator_config" and Path(value).is_file()
            if not is_file:
                raise UserError(
                    f"--{name} {value!r} is not a JSON object", f"as '{JSON_FLAGS[name]}'"
                )


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _require_no_extra(extra: Sequence[str], words: Sequence[str], names: Sequence[str]) -> None:
    if not extra:
        return
    first = extra[0]
    if first.startswith("--"):
        flag = first.split("=")[0]
        ours = _our_name(flag.removeprefix("--"), names)
        if ours:
            raise UserError(f"unknown flag {flag!r}", f"here it is --{ours}")
        raise unknown("flag", flag, [*map("--{}".format, names)])
    before = words[: len(words) - 1 - [*reversed(words)].index(first)]
    flag = next((word for word in reversed(before) if word.startswith("--")), "the command")
    raise UserError(f"{flag} takes one value, {first!r} is one too many", SEE_HELP)


def _our_name(name: str, names: Sequence[str]) -> str | None:
    """What a name from elsewhere is called here, if the command has a flag for it."""
    ours = FOREIGN_NAMES.get(name.replace("-", "_"))
    return ours if ours and ours.split()[0] in names else None


def _name_output(filled: Sequence[Any], logs: bool) -> None:
    """Name the output folder after model and data, where none was given."""
    given: dict[str, str | None] = {}
    for name in NAMING:
        values = [getattr(group, name, None) for group in filled]
        given[name] = next(filter(None, values), None)
    training = next((group for group in filled if isinstance(group, TrainingFlags)), None)
    names = list(filter(None, given.values()))
    if training is None or training.output_dir is not None or len(names) < 2:
        return
    parts = [short_name(name) for name in names]
    if any(isinstance(group, StudyConfig) for group in filled):
        parts.append("comparison")
    training.output_dir = f"out/{'-'.join(parts)}"
    if logs:
        log.info("no --output_dir was given, it is %s", training.output_dir)


def short_name(name: str) -> str:
    """`google/vit-base` -> `vit-base`, `mine/pets v2.csv` -> `pets-v2`; of `.` its own name."""
    path = Path(name.split(":")[-1]).expanduser()
    stem = FILE_ENDINGS.sub("", path.resolve().name if path.exists() else path.name)
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "data"


def _require_given(filled: Sequence[Any]) -> None:
    for name in REQUIRED:
        missing = [group for group in filled if getattr(group, name, "") is None]
        if missing and (name != "hub_model_id" or isinstance(missing[0], PushConfig)):
            raise UserError(
                f"--{name} is missing", f"give --{name}, or a --config file that has it"
            )


def _unfold_config(
    words: Sequence[str], names: Sequence[str], switches: Collection[str]
) -> list[str]:
    """The flags that the file after `--config` stands for."""
    joined = [word.split("=", 1)[1] for word in words if word.startswith("--config=")]
    apart = [after for word, after in itertools.pairwise(words) if word == "--config"]
    unfolded: list[str] = []
    for path in joined + apart:
        content, written = _read_yaml(Path(path), names)
        for key, value in content.items():
            if isinstance(value, dict):
                unfolded += [f"--{key}", json.dumps(value)]
            elif isinstance(value, list):
                unfolded += [f"--{key}", *map(str, written[key])]
            elif value is not None:
                # As it is written: `no` would be False, 12:30 a number; but `on` is true.
                unfolded += [f"--{key}", str(value if key in switches else written[key])]
    return unfolded


def _read_yaml(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a file of flags, and the same with each value as its text."""
    if not path.is_file():
        raise UserError(
            f"no config file {str(path)!r}",
            "give --config an existing YAML file; recipes/configs has some",
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        written = yaml.load(text, yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1} of {path}" if mark else str(path)
        raise UserError(f"{place} is not YAML: {error.problem}", YAML_LINES) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}", YAML_LINES) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no flags", YAML_LINES)
    for key in content:
        ours = _our_name(str(key), names)
        if ours:
            words = ours.replace(" ", ": ")
            raise UserError(f"unknown key {str(key)!r} in {path}", f"here it is {words}")
        if key not in names:
            refusal = unknown("key", str(key), names)
            raise UserError(f"{refusal.message} in {path}", refusal.hint)
    return content, written
