"""What can be checked in a config before any library or file is loaded."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from hf_transfer.config.bounds import require_in_bounds
from hf_transfer.config.evaluation import BASELINE_NAMES
from hf_transfer.config.run import CHECKPOINTS, STUDY_FILE, RunConfig
from hf_transfer.config.transfer import STRATEGY_NAMES
from hf_transfer.errors import UserError, unknown

NOT_SHARDED = "models are not sharded yet: each device trains a complete copy"
PUBLISHED_ONCE = "a model is published once, in one commit, at the end of its run"
# Flags of TrainingArguments that a run cannot honour: the values that are harmless, and why.
NOT_OFFERED: dict[str, tuple[tuple[Any, ...], str]] = {
    "resume_from_checkpoint": ((None,), "the same command resumes by itself; see --resume"),
    "restore_callback_states_from_checkpoint": (
        (False,),
        "a training state holds all that a run needs, and all of it is restored",
    ),
    "ignore_data_skip": ((False,), "a run resumes with the examples that it has not seen"),
    "enable_jit_checkpoint": ((False,), "SIGTERM and Ctrl-C save a training state already"),
    "save_total_limit": ((None,), "the newest training state and the one before it are kept"),
    "save_only_model": ((False,), "a run could not resume from it; the model is saved at the end"),
    "save_strategy": (
        ("no", "steps", "epoch"),
        "the best step is part of every training state; give no, steps or epoch",
    ),
    "train_sampling_strategy": (
        (None, "random", "sequential", "group_by_length"),
        "give random, sequential or group_by_length",
    ),
    "hub_strategy": (("end",), PUBLISHED_ONCE),
    "hub_always_push": ((False,), PUBLISHED_ONCE),
    "auto_find_batch_size": ((False,), "give --per_device_train_batch_size"),
    "remove_unused_columns": ((True,), "columns that the model does not take are always removed"),
    "bf16_full_eval": ((False,), "it would cast the weights that are saved; --bf16 is enough"),
    "fp16_full_eval": ((False,), "it would cast the weights that are saved; --fp16 is enough"),
    "fsdp": ((None,), NOT_SHARDED),
    "deepspeed": ((None,), NOT_SHARDED),
    "metric_for_best_model": (
        ("loss", "accuracy", "eval_loss", "eval_accuracy"),
        "give loss or accuracy",
    ),
    "label_names": ((None,), "use --label_column"),
    "batch_eval_metrics": ((False,), "metrics are computed over the whole split"),
    "eval_do_concat_batches": ((True,), "metrics are computed over the whole split"),
    "prediction_loss_only": ((False,), "metrics need the predictions"),
    "dataloader_drop_last": ((False,), "every example counts"),
}

PATTERN = set("*?[")  # characters of a pattern of files
# How `accelerate launch` tells its processes that models are sharded.
SHARDING = {"--use_fsdp": "ACCELERATE_USE_FSDP", "--use_deepspeed": "ACCELERATE_USE_DEEPSPEED"}


def validate(config: RunConfig, writes: bool = True) -> None:
    """Raise UserError for values and combinations of flags that no run could honour.

    Reads the environment of the launcher and, if the run `writes`, looks into the output folder;
    loads nothing.
    """
    _require_known_names(config)
    _require_offered(config)
    for group, each in _flags_of(vars(config).values()):
        require_in_bounds(each, getattr(group, each.name))
    _refuse(
        config.evaluation.confidence >= 1,
        f"--confidence {config.evaluation.confidence} is no level",
        "a number between 0 and 1, for example 0.95",
    )
    training = config.training
    _refuse(
        not isinstance(training.lr_scheduler_kwargs or {}, dict),
        f"--lr_scheduler_kwargs {training.lr_scheduler_kwargs} is no JSON object",
        """as '{"num_cycles": 2}'""",
    )
    _refuse(
        training.dataloader_persistent_workers and not training.dataloader_num_workers,
        "--dataloader_persistent_workers needs workers",
        "give --dataloader_num_workers, too",
    )
    _refuse(
        training.pack and training.torch_compile,
        "--pack with --torch_compile",
        "packed batches differ in shape, and each would be compiled: give one of them",
    )
    evaluates = training.load_best_model_at_end and training.eval_strategy != "no"
    _refuse(
        training.early_stopping_patience is not None and not evaluates,
        "--early_stopping_patience needs evaluations",
        "give --eval_strategy, --load_best_model_at_end",
    )
    _require_fitting_strategy(config)
    if "study" in config.groups:
        _require_comparable(config)
    if writes:
        _require_output_dir(config)


def unused_flags(groups: Iterable[Any], strategies: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Flags that were given and that none of the strategies uses -> the strategies that do."""
    unused = {}
    for group, each in _flags_of(groups):
        users: tuple[str, ...] = each.metadata.get("strategies", ())
        given = getattr(group, each.name) != each.default
        if given and users and not set(users).intersection(strategies):
            unused[each.name] = users
    return unused


def _refuse(condition: object, message: str, hint: str) -> None:
    """Raise UserError where the condition holds."""
    if condition:
        raise UserError(message, hint)


def _flags_of(groups: Iterable[Any]) -> Iterator[tuple[Any, Field[Any]]]:
    for group in groups:
        if hasattr(group, "_argument_group_name"):
            for each in fields(group):
                if each.init:
                    yield group, each


def _require_known_names(config: RunConfig) -> None:
    names: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "strategies": (config.study.strategies, STRATEGY_NAMES),
        "strategy": ([config.transfer.strategy], STRATEGY_NAMES),
        "baselines": (config.evaluation.baselines, BASELINE_NAMES),
    }
    for flag, (given, known) in names.items():
        for value in given:
            if value not in known:
                raise unknown(f"value of --{flag}", value, known)


def _require_offered(config: RunConfig) -> None:
    for name, (harmless, reason) in NOT_OFFERED.items():
        value = getattr(config.training, name)
        shown = getattr(value, "value", value)  # of an enumeration
        _refuse(value not in harmless, f"--{name} {shown} is not offered", reason)
    for name, variable in SHARDING.items():
        is_sharded = os.environ.get(variable, "false").lower() == "true"
        _refuse(is_sharded, f"{name} of the launcher is not offered", NOT_SHARDED)


def _require_fitting_strategy(config: RunConfig) -> None:
    transfer = config.transfer
    views = transfer.cached_views
    for name, users in unused_flags(vars(config).values(), config.strategies).items():
        flag = "--strategies" if "study" in config.groups else "--strategy"
        raise UserError(
            f"--{name} does not belong to {flag} {' '.join(config.strategies)}",
            f"leave it out; it is for {', '.join(users)}",
        )
    _refuse(
        config.training.thresholds == "tuned" and transfer.keep_adapter,
        "--thresholds tuned with --keep_adapter",
        "thresholds are kept in config.json, which an adapter does not have: give one of them",
    )
    _refuse(
        views and not config.cache.cache_frozen,
        f"--cached_views {views} with --cache_frozen false",
        "give one of them",
    )
    _refuse(
        views and config.training.augmentation == "none",
        f"--cached_views {views} needs an augmentation",
        "give --augmentation light, or photo, too",
    )
    _refuse(
        transfer.keep_adapter and transfer.pooling == "mean",
        "--keep_adapter with --pooling mean",
        "the base model has no layer for the mean: give one of them",
    )
    _refuse(
        config.model.keep_head and "scratch" in config.strategies,
        "--keep_head does not belong to --strategy scratch",
        "from scratch nothing is kept",
    )


def _require_comparable(config: RunConfig) -> None:
    data = config.data
    metrics = config.evaluation.metrics
    fewest = min(config.study.budgets)
    _refuse(
        config.task == "token-classification",
        "a comparison needs one class per row, not a tag per word",
        "it is over labels per class; run the recipe of the task per strategy",
    )
    _refuse(
        config.training.push_to_hub,
        "--push_to_hub does not belong to a comparison",
        "push a run of the strategy that you choose",
    )
    _refuse(
        any(name != "none" for name in config.training.report_to),
        f"--report_to {' '.join(config.training.report_to)} does not belong to a comparison",
        "its table and plot show the runs; report a run of the strategy that you choose",
    )
    _refuse(
        data.examples_per_class is not None,
        "--examples_per_class does not belong to a comparison",
        "give --budgets",
    )
    _refuse(
        data.problem_type not in (None, "single_label_classification"),
        f"a comparison needs one class per row, not --problem_type {data.problem_type}",
        "it is over labels per class, by accuracy; run the recipe of the task per strategy",
    )
    _refuse(
        metrics is not None and "accuracy" not in metrics,
        "a comparison needs the metric accuracy",
        "add it to --metrics",
    )
    _refuse(fewest < 1, f"--budgets {fewest} is too small", "give 1 or more labels per class")


def _require_output_dir(config: RunConfig) -> None:
    """Raise UserError unless the folder is free, or its content may be overwritten or resumed."""
    folder = config.output_dir
    _require_apart(folder, config.data.dataset_name)
    model = config.model.model_name_or_path
    _refuse(
        model is not None and Path(model).is_dir() and folder.resolve() == Path(model).resolve(),
        f"--output_dir {str(folder)!r} holds the base model",
        "name another folder",
    )
    _refuse(
        folder.exists() and not folder.is_dir(),
        f"--output_dir {str(folder)!r} is a file",
        "name a folder",
    )
    is_used = folder.is_dir() and any(folder.iterdir())
    overwrites = config.training.overwrite_output_dir
    content = "holds another run" if (folder / "record.json").exists() else "is not empty"
    _refuse(
        is_used and not overwrites and not _holds_unfinished_run(folder, config),
        f"the output folder {str(folder)!r} {content}",
        "name another, or give --overwrite_output_dir",
    )


def _require_apart(output: Path, dataset_name: str | None) -> None:
    """Raise UserError if the output would be written into the dataset, or around it."""
    if dataset_name is None:
        return
    dataset = Path(dataset_name).expanduser()
    is_pattern = not dataset.exists()
    while not dataset.exists() and PATTERN.intersection(str(dataset)):
        dataset = dataset.parent  # files beside those of a pattern are none of it
    if not dataset.exists():
        return
    output_at, dataset_at = output.resolve(), dataset.resolve()
    relation = None
    if dataset_at.is_relative_to(output_at):
        relation = "is" if dataset_at == output_at else "holds"
    elif output_at.is_relative_to(dataset_at) and not is_pattern:
        relation = "lies inside"
    _refuse(
        relation,
        f"--output_dir {str(output)!r} {relation} the dataset {str(dataset)!r}",
        "name a folder outside it, for the run alone",
    )


def _holds_unfinished_run(folder: Path, config: RunConfig) -> bool:
    """Whether there are training states, or a run that was killed before there was any.

    Or a study: it goes on, too. Whose run it is, is checked when it is resumed.
    """
    if "study" in config.groups:
        return (folder / STUDY_FILE).is_file()
    states = folder / CHECKPOINTS
    is_only = list(folder.iterdir()) == [states]
    return is_only or any(states.glob("*.json")) or any(states.glob("state-*"))
