"""All that is checked before anything is loaded, once: what would otherwise fail late."""

import tempfile
from pathlib import Path

from hf_transfer.config.run import RunConfig
from hf_transfer.config.validate import validate
from hf_transfer.data.augmentation import require_augmentation
from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import load_tag_metrics, require_metrics
from hf_transfer.models.adapters import require_loadable_method, require_method
from hf_transfer.models.from_config import require_buildable
from hf_transfer.models.locate import locate, read_config
from hf_transfer.sharing.hub import full_name
from hf_transfer.tasks import Task, find_task
from hf_transfer.training.checks import require_optimizer
from hf_transfer.training.packages import require_packages


def preflight(config: RunConfig, writes: bool = True) -> None:
    """Raise UserError for what would stop a run later.

    Flags and their combinations, packages that they need, names of augmentations, methods and
    metrics, the kind of the checkpoint, the right to write and to push; unless it `writes`, the
    output folder may be any. A config made in Python is checked as one that was typed.
    """
    validate(config, writes)
    require_packages(config.training)
    require_optimizer(config.training)
    task = find_task(config.task)
    require_known_names(config, task)
    if "source_model" in config.groups:
        require_buildable(config.source_model, task)
    if config.model.model_name_or_path is not None:
        read_config(locate(config.model), task)
    if config.transfer.keep_adapter:
        _require_base_that_stays(config)
    if writes:
        _require_writable("output_dir", config.output_dir.absolute())
    if config.cache.cache_dir:
        _require_writable("cache_dir", Path(config.cache.cache_dir).expanduser().absolute())
    if config.hub:
        full_name(config.hub)


def require_known_names(config: RunConfig, task: Task) -> None:
    """Raise UserError for an augmentation, an adapter method or a metric that does not exist."""
    require_augmentation(config.training.augmentation, task)
    if config.training.pack and task.modality != "text":
        raise UserError(f"--pack is for texts, not for {task.name}", "leave it out")
    require_method(config.transfer.peft_method, config.transfer.lora_rank)
    if config.transfer.keep_adapter:
        require_loadable_method(config.transfer.peft_method, config.transfer.lora_rank)
    problem_type = config.data.problem_type
    if {"source_model", "study"}.intersection(config.groups):  # for one class per row alone
        problem_type = problem_type or "single_label_classification"
    if task.labels_words:
        load_tag_metrics(config.evaluation.metrics)
    else:
        require_metrics(config.evaluation.metrics, problem_type)


def _require_base_that_stays(config: RunConfig) -> None:
    """Raise UserError if an adapter could not be loaded again because its base model goes."""
    base = str(config.model.model_name_or_path)
    folder = Path(base).expanduser()
    if base.startswith("builtin:"):
        raise UserError(
            f"--keep_adapter: {base} moves with the installed package",
            "leave out --keep_adapter, or copy it to a folder",
        )
    if config.hub and folder.is_dir():
        raise UserError(
            f"--keep_adapter: nobody can load an adapter of {base!r} from the Hub",
            "leave out --keep_adapter, or start from a checkpoint of the Hub",
        )


def _require_writable(flag: str, folder: Path) -> None:
    for place in (folder.parent, folder):
        existing = next(each for each in (place, *place.parents) if each.exists())
        try:
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            raise UserError(
                f"cannot write into {str(existing)!r}", f"name another --{flag}"
            ) from error
