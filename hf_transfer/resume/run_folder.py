"""What of a run lies in `checkpoints/` below its output folder: what was asked, and the states to go on from."""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_transfer.config.run import CHECKPOINTS
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import Finished, UserError
from hf_transfer.resume.run_spec import say_differences
from hf_transfer.resume.states import NotSavedError, State, States
from hf_transfer.sealed import _sync_folder as sync

log = logging.getLogger(__name__)

ASKED = "run.json"
LOCK = "lock"
CHOICE = "choice.json"

_locks: dict[Path, int] = {}  # of this process: folder -> descriptor
_cleared: set[Path] = set()  # by the run that has just begun
_asked: dict[Path, dict[str, Any]] = {}  # the run that this process has opened there


class SavedRun:
    """A run in its folder. Only the main process writes; all of them see the same."""

    def __init__(self, folder: Path, asked: Mapping[str, Any], resumed: State | None) -> None:
        self.folder = folder
        self.asked = asked
        self.resumed = resumed
        self.states = States(folder)
        self.kept_at, self.stall = (
            time.perf_counter(),
            0.0,
        )  # when the state was kept, how long training waited

    @property
    def phases_done(self) -> int | None:
        """How many phases were over when the state was kept; None without one."""
        return len(self.resumed.facts["done"]) if self.resumed else None

    def wait(self) -> None:
        """Return when the last state is on the disk, or it is said that it is not."""
        try:
            self.states.wait()
        except NotSavedError as error:
            log.warning("the last state could not be kept: %s", error)


def open_run(training: TrainingConfig, asked: dict[str, Any]) -> SavedRun | None:
    """The run in the output folder, for this process alone, with the state to go on from; None without a folder.

    `asked`, as JSON, is all that decides what is learned. Raises UserError if the folder belongs to another run, by its
    first differences, or if a process is at work on it; Finished if all is done.
    """
    if training.output_dir is None:
        return None
    folder = Path(training.output_dir) / CHECKPOINTS
    found: list[Any] = [None, None]
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
    _cleared.discard(folder)  # the next run there begins anew
    return SavedRun(folder, asked, found[0])


def claim(training: TrainingConfig) -> None:
    """Take the output folder for this process, on the main process; with --overwrite_output_dir what is kept goes.

    Raises UserError if another process has it.
    """
    folder = Path(str(training.output_dir)) / CHECKPOINTS
    if folder not in _locks:
        _lock(folder)
        States(folder).tidy()
    first = (
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    )  # a launcher that starts it again means to go on
    if training.overwrite_output_dir and first and folder not in _cleared:
        States(folder).clear()
        for name in (ASKED, CHOICE):
            (folder / name).unlink(missing_ok=True)
        _cleared.add(folder)


def _lock(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Not flock: workers that load data would inherit it, and hold it longer than a run that is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(descriptor)
        raise UserError(
            f"another run is at work in {str(folder.parent)!r}",
            "wait for its end, or name another --output_dir",
        ) from error
    except OSError as error:
        log.warning("%s cannot be locked, see that no other run works there: %s", folder, error)
    _locks[folder] = descriptor


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
        same = kept.get("asked") == asked
        found[0] = kept["choice"] if same else None
    broadcast_object_list(found)
    return found[0]


def _find(folder: Path, training: TrainingConfig, asked: dict[str, Any]) -> State | None:
    """The state to go on from, after comparing what is asked with what was."""
    states, before = States(folder), _read(folder / ASKED)
    state = states.newest()
    _require_same(
        before.get("asked") or (state.facts["asked"] if state else {}), asked, folder.parent
    )
    if before.get("finished"):
        states.clear()  # where the process was killed at its very end
        _say_finished(before, training)
    if state and training.resume == "never":
        raise UserError(
            f"{str(folder.parent)!r} holds a run that was stopped",
            "--resume auto, or --overwrite_output_dir",
        )
    if state:
        states.remove_newer(state)
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
    changed = say_differences(before, now)
    if changed:
        raise UserError(
            f"{str(folder)!r} holds another run: {'; '.join(changed[:3])}",
            "give what was given then, name another --output_dir, or --overwrite_output_dir to start over",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        log.warning("%s cannot be read, and is left out", path)
        return {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    stage = path.with_name(f".{path.name}")
    stage.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    sync(stage)
    stage.replace(path)
    sync(path.parent)
