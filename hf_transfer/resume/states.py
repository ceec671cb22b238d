"""The training states of a run: sealed folders, verified before a run resumes from one.

Whenever the process dies, the state before the one that it was writing is as it was.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from hf_transfer import sealed
from hf_transfer.sealed import DamageError, NotWrittenError

log = logging.getLogger(__name__)

MAX_STATES = 2  # the newest, and the one before until the next is verified

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """A training state on the disk that was verified, and its facts."""

    path: Path
    facts: Facts

    def load(self, part: str) -> Any:
        """One of its parts, with the tensors in main memory."""
        return torch.load(self.path / f"{part}.pt", map_location="cpu", weights_only=True)


class States:
    """The training states of one run.

    They are written in the background, one at a time; the oldest are removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Thread | None = None
        self._outcome: Exception | None = None
        self._buffers: dict[tuple[str, ...], torch.Tensor] = {}

    def write(self, name: str, parts: Mapping[str, Any], facts: Facts) -> None:
        """Copy a state and begin to write it.

        Parts are the bytes of a file of that name, or what torch.save takes. Raises NotWrittenError
        for the state before this one.
        """
        self.wait()
        # Replaced when the outcome is known.
        self._outcome = RuntimeError("a state was not written: see the error logged above")
        arguments = (name, self._copy(parts), facts)
        self._writer = Thread(target=self._write, args=arguments, daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Return when the state is on the disk. Raises NotWrittenError."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
            if self._outcome:
                raise self._outcome

    def newest(self) -> State | None:
        """The newest state that is complete; a warning names each that had to be passed over."""
        for path in reversed(self._paths()):
            try:
                return State(path, verify(path))
            except DamageError as damage:
                log.warning("passed over the state %s: %s", path, damage)
        return None

    def remove_newer(self, state: State) -> None:
        """Remove the states that were passed over, lest a damaged one count as the one before."""
        paths = self._paths()
        _remove(paths[paths.index(state.path) + 1 :])

    def clear(self) -> None:
        """Remove all states, and what a killed process has left."""
        _remove(self._paths())
        self.remove_temporary()

    def remove_temporary(self) -> None:
        """Remove what a killed process has left; only for who holds the lock of the folder."""
        _remove(self.folder.glob(".*.tmp"))

    def _copy(self, value: Any, *place: str) -> Any:
        """The same dicts and lists with copies of their tensors in main memory.

        The memory of the last state's copies is used again. Fresh memory costs ten times as much as
        the copying: the system hands it out page by page.
        """
        if isinstance(value, torch.Tensor):
            buffer = self._buffers.get(place)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = self._buffers[place] = torch.empty_like(
                    value, device="cpu", memory_format=torch.contiguous_format
                )
            return buffer.copy_(value.detach())
        if isinstance(value, Mapping):
            return {key: self._copy(each, *place, str(key)) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(each, *place, str(i)) for i, each in enumerate(value))
        return value

    def _write(self, name: str, parts: Mapping[str, Any], facts: Facts) -> None:
        """Write a state and verify it, in the thread; then remove the oldest ones."""
        older = self._paths()
        number = 1 + max((int(path.name.split("-")[1]) for path in older), default=0)
        path = self.folder / f"state-{number:06d}-{name}"
        try:
            verify(write_state(path, parts, facts))
        except NotWrittenError as error:
            self._outcome = error
        except DamageError as damage:
            _remove([path])
            self._outcome = NotWrittenError(f"{path} was not read as it was written: {damage}")
        else:
            _remove(older[: len(older) + 1 - MAX_STATES])
            self._outcome = None

    def _paths(self) -> list[Path]:
        """The states, oldest first, complete or not."""
        paths = self.folder.glob("state-*-*")
        return sorted(path for path in paths if path.name.split("-")[1].isdigit())


def write_state(path: Path, parts: Mapping[str, Any], facts: Facts) -> Path:
    """The path of a state, once it is on the disk. Raises NotWrittenError and leaves nothing."""
    name = f"{path} ({_size(parts):,} bytes)"
    files = []
    with sealed.report_disk_errors(name), sealed.staged_folder(path) as stage:
        for part, value in parts.items():
            is_file = isinstance(value, bytes)
            with sealed.SealedFile(stage / (part if is_file else f"{part}.pt")) as file:
                if is_file:
                    file.write(value)
                else:
                    _save(value, file)
                files.append(file.seal())
        sealed.write_manifest(stage, {"files": files, "facts": dict(facts)})
        sealed.publish(stage, path)
    return path


def _save(value: Any, file: sealed.SealedFile) -> None:
    try:
        torch.save(value, file)
    except RuntimeError as error:  # what a file raises, torch turns into one
        raise OSError(str(error.__context__ or error)) from error


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> Facts:
    """The facts of a state whose every file is what was written. Raises DamageError."""
    try:
        return dict(sealed.read_manifest(path, itemgetter("files"))["facts"])
    except OSError as error:
        name = Path(error.filename or path).name
        raise DamageError(f"{name} cannot be read: {error.strerror}") from None


def _size(value: Any) -> int:
    """Bytes of the tensors in it, or of itself."""
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 0)
