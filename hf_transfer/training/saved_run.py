"""What of a run lies in `checkpoints/` below its output folder: what was asked, and the states to go on from."""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_transfer.config import CHECKPOINTS, TrainingConfig
from hf_transfer.errors import Finished, UserError
from hf_transfer.training.checkpoints import State, States
from hf_transfer.training.entry import sync

log = logging.getLogger(__name__)

ASKED = "run.json"
LOCK = "lock"
CHOICE = "choice.json"

# Flags of training that change nothing of what is learned; all others must be as they were.
# fmt: off
FREE = (
    "output_dir", "overwrite_output_dir", "resume", "on_nan", "save_minutes", "save_strategy", "save_steps",
    "save_total_limit",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",  # see engine.py
    "num_train_epochs",  # in the plan
    "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_first_step",
    "logging_nan_inf_filter",
    "logging_steps", "logging_strategy", "report_to", "run_name", "project", "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id", "save_on_each_node", "eval_on_start", "eval_accumulation_steps",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "hub_revision", "hub_strategy",
    "hub_always_push",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters",
    "local_rank", "use_cpu",
    "debug", "do_train", "do_eval", "do_predict", "torch_empty_cache_steps", "skip_memory_metrics", "data_seed",
)
# fmt: on

_locks: dict[Path, int] = {}  # of this process: folder -> descriptor
_asked: dict[Path, dict[str, Any]] = {}  # the run that this process has opened there


class SavedRun:
    """A run in its folder. Only the main process writes; all of them see the same."""

    def __init__(self, folder: Path, asked: Mapping[str, Any], resumed: State | None) -> None:
        self.folder = folder
        self.asked = asked
        self.resumed = resumed
        self.states = States(folder)


def open_run(training: TrainingConfig, described: Mapping[str, Any]) -> SavedRun | None:
    """The run in the output folder, for this process alone, with the state to go on from; None without a folder.

    `described` is all that decides what is learned. Raises UserError if the folder belongs to another run, by its first
    differences, or if a process is at work on it; Finished if all is done.
    """
    if training.output_dir is None:
        return None
    folder = Path(training.output_dir) / CHECKPOINTS
    found: list[Any] = [None, None]
    asked = json.loads(json.dumps(described, default=str))
    if PartialState().is_main_process:
        claim(training)
        try:
            found[0] = _find(folder, training, asked)
        except Finished as end:
            found[1] = str(end)
    broadcast_object_list(found)
    if found[1]:
        release(training)
        raise Finished(found[1])
    _asked[folder] = asked
    return SavedRun(folder, asked, found[0])


def claim(training: TrainingConfig) -> None:
    """Take the output folder for this process, on the main process; with --overwrite_output_dir what is kept goes.

    Raises UserError if another process has it.
    """
    folder = Path(str(training.output_dir)) / CHECKPOINTS
    if folder in _locks:
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UserError(
            f"another run is at work in {str(folder.parent)!r}", "wait for its end, or name another --output_dir"
        ) from error
    _locks[folder] = descriptor
    States(folder).tidy()
    if training.overwrite_output_dir and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        States(folder).clear()
        for name in (ASKED, CHOICE):
            (folder / name).unlink(missing_ok=True)


def release(training: TrainingConfig) -> None:
    """Give the folder back, on the main process; of a run that has kept nothing yet, nothing stays."""
    folder = Path(str(training.output_dir)) / CHECKPOINTS
    if folder not in _locks:
        return
    if not any(path.name != LOCK for path in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    _let_go(folder)


def _let_go(folder: Path) -> None:
    if folder in _locks:
        os.close(_locks.pop(folder))


def note(output_dir: Path, **facts: bool) -> None:
    """Write down, on the main process, what the run in a folder was asked to do, and what has been done."""
    folder = output_dir / CHECKPOINTS
    if folder in _asked:
        _write(folder / ASKED, {"asked": _asked[folder], **facts})


def finish(output_dir: Path, published: bool) -> None:
    """Note that nothing is left to do, on the main process; the states go."""
    note(output_dir, finished=True, published=published)
    folder = output_dir / CHECKPOINTS
    States(folder).clear()
    _asked.pop(folder, None)
    _let_go(folder)


def describe_asked(training: TrainingConfig, **others: Any) -> dict[str, Any]:
    """All that decides what is learned, by the name that a person knows it by."""
    flags = {f"--{name}": value for name, value in training.to_dict().items() if name not in FREE}
    return {**others, **flags}


def weights_digest(model: Any) -> str:
    """A digest of every parameter and buffer of a model, by name."""
    digest = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def keep_choice(training: TrainingConfig, asked: Mapping[str, Any], choice: Any) -> None:
    """Keep what trials have found, a dataclass, for the same run started again; on the main process."""
    if training.output_dir is not None and PartialState().is_main_process:
        claim(training)
        folder = Path(training.output_dir) / CHECKPOINTS
        _write(folder / CHOICE, {"asked": dict(asked), "choice": asdict(choice)})


def kept_choice(training: TrainingConfig, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the trials of the same run have found before; the same in all processes."""
    found: list[Any] = [None]
    if training.output_dir is not None and PartialState().is_main_process:
        claim(training)
        kept = _read(Path(training.output_dir) / CHECKPOINTS / CHOICE)
        same = kept.get("asked") == json.loads(json.dumps(asked, default=str))
        found[0] = kept["choice"] if same else None
    broadcast_object_list(found)
    return found[0]


def _find(folder: Path, training: TrainingConfig, asked: dict[str, Any]) -> State | None:
    """The state to go on from, after comparing what is asked with what was."""
    before, state = _read(folder / ASKED), States(folder).newest()
    _require_same(before.get("asked") or (state.facts["asked"] if state else {}), asked, folder.parent)
    if before.get("finished"):
        _say_finished(before, training)
    if state and training.resume == "never":
        raise UserError(
            f"{str(folder.parent)!r} holds a run that was stopped", "--resume auto, or --overwrite_output_dir"
        )
    if state:
        log.info("going on from %s", state.path)
    return state


def _say_finished(before: Mapping[str, Any], training: TrainingConfig) -> None:
    folder = str(training.output_dir)
    if training.push_to_hub and not before.get("published"):
        raise UserError(
            f"the run in {folder!r} is finished, but was not pushed",
            f"hf-transfer run push_to_hub --output_dir {folder} --hub_model_id YOU/{Path(folder).name}",
        )
    raise Finished(f"the run in {folder!r} is finished; --overwrite_output_dir starts it over")


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError, naming the differences, if another run was asked for."""
    changed = _differences(before, now)
    if changed:
        said = "; ".join(f"{name} was {_shorten(old)}, now {_shorten(new)}" for name, old, new in changed[:3])
        raise UserError(
            f"{str(folder)!r} holds another run: {said}",
            "give what was given then, name another --output_dir, or --overwrite_output_dir to start over",
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What is not as it was, by name: old and new value; of what has parts, the parts."""
    found: list[tuple[str, Any, Any]] = []
    for name in now:
        old, new = before.get(name), now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            found += [(f"{name}: {part}", *values) for part, *values in _differences(old, new)]
        elif name in before and old != new:
            found.append((name, old, new))
    return found


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError:
        log.warning("%s cannot be read, and is left out", path)
        return {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    stage = path.with_name(f".{path.name}")
    stage.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    sync(stage)
    stage.replace(path)
    sync(path.parent)
