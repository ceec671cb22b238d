"""Where a checkpoint is, and its config and processor: all that is read apart from the weights."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from hf_transfer.config.model import ModelConfig
from hf_transfer.errors import UserError, one_line, unknown
from hf_transfer.hub_repository import card_license, find_repository
from hf_transfer.package_files import PACKAGE
from hf_transfer.tasks import TASKS, Task, model_kinds

GENERIC = re.compile(r"(model|checkpoint|output|out|run|final|best)s?([-_]\d+)?")
ASSETS = PACKAGE / "assets"


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from: `revision` is a commit for a Hub id, None otherwise.

    `location` is what from_pretrained takes: a Hub id, or a path, which is in no record.
    """

    id: str
    revision: str | None = None
    license: str | None = None
    location: str = ""


@dataclass(frozen=True)
class Location:
    """Where from_pretrained finds a checkpoint."""

    provenance: Provenance
    arguments: dict[str, Any]  # of from_pretrained


def locate(config: ModelConfig) -> Location:
    """Where the checkpoint of a model config is: shipped with the package, in a folder, on the Hub.

    Raises UserError if it does not exist, or is an adapter.
    """
    name = str(config.model_name_or_path)
    path = Path(name).expanduser()
    if name.startswith("builtin:"):
        path = _builtin_folder(name.removeprefix("builtin:"))
        provenance = Provenance(name, None, card_license(path), str(path))
        arguments = {"pretrained_model_name_or_path": str(path)}
    elif path.is_dir():
        _require_no_adapter(name, str(path), None)
        if not (path / "config.json").is_file():
            hint = "name a folder written by save_pretrained"
            raise UserError(f"the folder {name!r} has no config.json", hint)
        resolved = path.resolve()
        name = local_name(resolved)
        provenance = Provenance(f"local:{name}", None, card_license(path), str(resolved))
        arguments = {"pretrained_model_name_or_path": str(path)}
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(
            f"no checkpoint folder {name!r}",
            "check --model_name_or_path; a Hub id looks like user/name",
        )
    else:
        found = find_repository(name, "model", config.model_revision)
        _require_no_adapter(name, found.id, found.revision)
        provenance = Provenance(found.id, found.revision, found.license, found.id)
        arguments = {"pretrained_model_name_or_path": found.id, "revision": found.revision}
    return Location(provenance, {**arguments, "trust_remote_code": config.trust_remote_code})


def local_name(folder: Path) -> str:
    """The name of a folder; with the folder around it where it says nothing by itself."""
    is_generic = GENERIC.fullmatch(folder.name.lower()) and folder.parent.name
    return f"{folder.parent.name}/{folder.name}" if is_generic else folder.name


def _builtin_folder(name: str) -> Path:
    shipped = sorted(path.name for path in ASSETS.iterdir() if (path / "config.json").is_file())
    if name not in shipped:
        raise unknown("builtin checkpoint", name, shipped)
    return ASSETS / name


def _require_no_adapter(name: str, location: str, revision: str | None) -> None:
    # transformers would load it into its base model, and save the adapter alone again.
    if find_adapter_config_file(location, revision=revision):
        raise UserError(
            f"{name!r} is an adapter, not a complete model",
            "start from its base model; to start from a run of ours, make it without "
            "--keep_adapter",
        )


def read_config(location: Location, task: Task) -> Any:
    """The config of a checkpoint; no weights are read.

    Raises UserError if it cannot be read, or the checkpoint was not pretrained on the task's kind
    of input.
    """
    config = _read_any_config(location)
    trusts = location.arguments["trust_remote_code"]
    require_modality(config, task, location.provenance.id, trusts)
    return config


def find_checkpoint_task(location: Location) -> Task:
    """The task of a checkpoint: that of its head, or else the first of its kind of input.

    Raises UserError if it has none, or reads several kinds of input.
    """
    config = _read_any_config(location)
    covering = [task for task in TASKS.values() if task.covers(config)]
    architecture = (config.architectures or [""])[0]
    own = [task for task in covering if task.model_class_name(config) == architecture]
    found = own or covering
    if len({task.modality for task in found}) != 1:
        raise UserError(
            f"{location.provenance.id!r} ({architecture or config.model_type}) does not tell "
            "which task it is for",
            f"give --task, one of {', '.join(TASKS)}",
        )
    return found[0]


def _read_any_config(location: Location) -> Any:
    name = location.provenance.id
    try:
        return AutoConfig.from_pretrained(**location.arguments)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read the config of {name!r}: {one_line(error)}",
            "it must be a transformers checkpoint; --trust_remote_code runs the code that some of "
            "them bring",
        ) from error


def require_modality(config: Any, task: Task, name: str, trust_remote_code: bool) -> None:
    """Raise UserError if the network of a config has no class for the task.

    `name` is the network's name in the message.
    """
    own_classes = getattr(config, "auto_map", None) or {}
    if task.covers(config) or (trust_remote_code and task.auto_class in own_classes):
        return
    network = f"{name!r} ({config.model_type})"
    others = [other for other in TASKS.values() if other.covers(config)]
    modalities = sorted({other.modality for other in others})
    if others and task.modality not in modalities:
        raise UserError(
            f"{network} was pretrained on {' and '.join(modalities)}, "
            f"{task.name} needs {task.modality}",
            "start from a checkpoint of the same kind of input"
            + "".join(f", or use {other.name}" for other in others),
        )
    raise UserError(
        f"{network} has no class for {task.name}, it has "
        + (", ".join(model_kinds(config)) or "none for any task"),
        f"start from {task.modality} that {task.auto_class} supports",
    )


def load_processor(location: Location, processor_class: Any) -> Any:
    """The image processor or tokenizer of a checkpoint; raises UserError if it has none.

    `processor_class` is one of transformers' Auto classes.
    """
    with quiet_transformers():
        try:
            return processor_class.from_pretrained(**location.arguments)
        except ImportError as error:  # transformers 5.17 reads images with torchvision only
            raise UserError(
                one_line(error), "install it, or the versions of our constraints.txt"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"the checkpoint {location.provenance.id!r} has no processor: {one_line(error)}",
                "its folder needs preprocessor_config.json or the tokenizer's files",
            ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A context without transformers' own log, such as its load report: we log that in one line."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
