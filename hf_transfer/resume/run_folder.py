"""The folder `checkpoints/` below a run's output folder: lock, spec and training states."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_transfer.config.run import CHECKPOINTS, REPORTS
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import Finished, UserError
from hf_transfer.resume.run_spec import Spec, require_same
from hf_transfer.resume.states import State, States
from hf_transfer.sealed import NotWrittenError, write_atomically

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
LOCK_FILE = "lock"
CHOICE_FILE = "choice.json"


@dataclass
class SavedRun:
    """A run in its folder. Only the main process writes; all of them see the same."""

    folder: Path
    spec: Spec
    resumed: State | None
    saved_at: float = field(default_factory=time.perf_counter)  # when a state was last saved
    save_seconds: float = 0.0  # for which training waited then

    def __post_init__(self) -> None:
        self.states = States(self.folder)

    def wait(self) -> None:
        """Return when the last state is on the disk; a warning tells if it is not."""
        try:
            self.states.wait()
        except NotWrittenError as error:
            log.warning("the training state could not be saved: %s", error)


@dataclass
class _HeldFolder:
    """A folder whose lock this process holds."""

    unlock: Callable[[], None]
    is_cleared: bool = False  # by the run that has just begun
    spec: Spec | None = None  # of the run that was opened there


_held: dict[Path, _HeldFolder] = {}  # of this process


def open_run(training: TrainingConfig, spec: Spec) -> SavedRun | None:
    """The run in the output folder with the state to resume from; None without an output folder.

    Raises UserError if the folder holds another run, with the first differences, or if another
    process is at work there; Finished if the run is.
    """
    if training.output_dir is None:
        return None
    folder = _folder_of(training)
    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        claim(training)
        try:
            found[0] = _find_state(folder, training, spec)
        except Finished as end:
            found[1] = str(end)
    broadcast_object_list(found)
    if found[1]:
        release(training)
        raise Finished(found[1])
    if folder in _held:
        _held[folder].is_cleared = False  # the next run there begins anew
        _held[folder].spec = spec
    return SavedRun(folder, spec, found[0])


def claim(training: TrainingConfig) -> None:
    """Lock the output folder for this process, and with --overwrite_output_dir clear it.

    On the main process. Raises UserError if another process holds the lock.
    """
    folder = _folder_of(training)
    if folder not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        _held[folder] = _HeldFolder(_lock(folder))
        States(folder).remove_temporary()
    # A launcher that restarts a run means to resume it.
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if training.overwrite_output_dir and not restarted and not _held[folder].is_cleared:
        States(folder).clear()
        shutil.rmtree(folder / REPORTS, ignore_errors=True)
        for name in (RUN_FILE, CHOICE_FILE):
            (folder / name).unlink(missing_ok=True)
        _held[folder].is_cleared = True


def _folder_of(training: TrainingConfig) -> Path:
    return Path(str(training.output_dir)) / CHECKPOINTS


def _lock(folder: Path) -> Callable[[], None]:
    """Lock a folder; what is returned unlocks it. Raises UserError if another process holds it."""
    try:
        return _lock_file(folder / LOCK_FILE)
    except (BlockingIOError, TimeoutError) as error:
        message = f"another run is at work in {str(folder.parent)!r}"
        raise UserError(message, "wait for its end, or name another --output_dir") from error


def _lock_file(path: Path) -> Callable[[], None]:
    """Lock a file; what is returned unlocks it. Raises BlockingIOError or TimeoutError."""
    try:
        import fcntl
    except ImportError:  # Windows
        import filelock

        lock = filelock.FileLock(path, timeout=0, thread_local=False)
        lock.acquire()
        return lock.release
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Neither flock nor filelock, which uses it: workers that load data would inherit the lock,
        # and hold it longer than a run that is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # systems differ in which of them
        os.close(descriptor)
        raise BlockingIOError(str(path)) from error
    except OSError as error:
        log.warning("%s cannot be locked, see that no other run works there: %s", path, error)
    return partial(os.close, descriptor)


def release(training: TrainingConfig) -> None:
    """Unlock the folder, on the main process; remove it if the run has saved nothing yet."""
    folder = _folder_of(training)
    if folder not in _held:
        return
    if set(folder.iterdir()) <= {folder / LOCK_FILE}:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    _held.pop(folder).unlock()


def write_run_file(output_dir: Path, **facts: bool) -> None:
    """Write the spec of the run in a folder, and how far it is; on the main process."""
    folder = output_dir / CHECKPOINTS
    if folder in _held and _held[folder].spec:
        _write_json(folder / RUN_FILE, {"spec": _held[folder].spec, **facts})


def finish(output_dir: Path, published: bool) -> None:
    """Record that the run is finished, and remove its states; on the main process."""
    write_run_file(output_dir, finished=True, published=published)
    folder = output_dir / CHECKPOINTS
    States(folder).clear()
    if folder in _held:
        _held.pop(folder).unlock()


def save_choice(training: TrainingConfig, spec: Spec, choice: Any) -> None:
    """Save the result of trials, a dataclass, for the same run started again."""
    if training.output_dir is not None and PartialState().is_main_process:
        claim(training)
        _write_json(_folder_of(training) / CHOICE_FILE, {"spec": spec, "choice": asdict(choice)})


def load_choice(training: TrainingConfig, spec: Spec) -> dict[str, Any] | None:
    """The saved result of the trials of the same run; the same in all processes."""
    found: list[Any] = [None]
    if training.output_dir is not None and PartialState().is_main_process:
        claim(training)
        saved = _read_json(_folder_of(training) / CHOICE_FILE)
        found[0] = saved["choice"] if saved.get("spec") == spec else None
    broadcast_object_list(found)
    return found[0]


def _find_state(folder: Path, training: TrainingConfig, spec: Spec) -> State | None:
    """The state to resume from, once the specs of the saved run and of this one are compared."""
    states = States(folder)
    run = _read_json(folder / RUN_FILE)
    state = states.newest()
    before = run or (state.facts if state else None)
    if before:
        hint = "give the same flags, another --output_dir, or --overwrite_output_dir to start over"
        # The first versions wrote no spec.
        require_same(before.get("spec", {}), spec, folder.parent, "run", hint)
    if run.get("finished"):
        states.clear()  # a process that was killed at its very end has left them
        _raise_finished(run, training)
    if state and training.resume == "never":
        message = f"{str(folder.parent)!r} holds a run that was stopped"
        raise UserError(message, "--resume auto, or --overwrite_output_dir")
    if state:
        states.remove_newer(state)
        log.info("resuming from %s", state.path)
    return state


def _raise_finished(run: Mapping[str, Any], training: TrainingConfig) -> None:
    folder = str(training.output_dir)
    if training.push_to_hub and not run.get("published"):
        command = f"hf-transfer run push_to_hub --output_dir {folder}"
        raise UserError(
            f"the run in {folder!r} is finished, but was not pushed",
            f"{command} --hub_model_id YOU/{Path(folder).name}",
        )
    raise Finished(f"the run in {folder!r} is finished; --overwrite_output_dir starts it over")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        log.warning("%s cannot be read, and is ignored", path)
    except FileNotFoundError:
        pass
    return {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, default=str))
