"""All that is checked before anything is loaded, once."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

from hf_transfer.config import RunConfig
from hf_transfer.data.augmentation import require_augmentation
from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import require_metrics
from hf_transfer.models.adapters import require_loadable_method, require_method
from hf_transfer.models.locate import locate, read_config
from hf_transfer.sharing.hub import full_name
from hf_transfer.tasks import Task


def preflight(config: RunConfig, task: Task) -> RunConfig:
    """The config with the full id of where to push, after trying what would otherwise fail late.

    That is the augmentation, the checkpoint's kind, the names of metrics, the right to write and to push. Raises
    UserError.
    """
    require_augmentation(config.training.augmentation, task)
    if config.model.model_name_or_path is not None:
        read_config(locate(config.model), task)
    require_method(config.transfer.peft_method, config.transfer.lora_rank)
    if config.transfer.keep_adapter:
        _require_base_that_stays(config)
    require_metrics(config.evaluation.metrics, config.data.problem_type)
    output = config.output_dir.absolute()
    for place in (output.parent, output):
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        if not _writable(existing):
            raise UserError(f"cannot write into {str(existing)!r}", "name another --output_dir")
    if not config.hub:
        return config
    training = copy.copy(config.training)
    training.hub_model_id = full_name(config.hub)
    return replace(config, training=training)


def _require_base_that_stays(config: RunConfig) -> None:
    """Raise UserError if an adapter could not be loaded again: with PEFT alone, or because its base model goes."""
    require_loadable_method(config.transfer.peft_method, config.transfer.lora_rank)
    base = str(config.model.model_name_or_path)
    if base.startswith("builtin:"):
        raise UserError(
            f"--keep_adapter: {base} moves with the installed package",
            "leave out --keep_adapter, or copy it to a folder",
        )
    if Path(base).expanduser().resolve() == config.output_dir.resolve():
        raise UserError(
            f"--keep_adapter: --output_dir {base!r} holds the base model",
            "name another folder; the adapter needs its base",
        )
    if config.hub and Path(base).expanduser().is_dir():
        raise UserError(
            f"--keep_adapter: nobody can load an adapter of {base!r} from the Hub",
            "leave out --keep_adapter, or start from a checkpoint of the Hub",
        )


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
