"""The state of a run that is under way: folders that are whole or not there, proved before they are trusted.

A state is written under a temporary name, each file put on the disk, `manifest.json` with the size and sha256 of all of
them last; then it is renamed. Whatever moment a process dies at, the state before is as it was.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, cast

import torch

from hf_transfer.sealed import _sync_folder as sync

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
STAGE = ".stage-"  # of what is not whole yet
KEPT = 2  # states: the newest, and the one before until the next is proved
CHUNK = 1 << 24  # bytes

Facts = Mapping[str, Any]


class DamageError(Exception):
    """A state is not what was written; the text says what is wrong."""


class NotSavedError(Exception):
    """The disk could not take a state; the text names path and bytes. Nothing of it is left behind."""


@dataclass(frozen=True)
class State:
    """A state on the disk that was proved, and its facts."""

    path: Path
    facts: Facts

    def load(self, part: str) -> Any:
        """A part of it, its tensors in main memory."""
        return torch.load(self.path / f"{part}.pt", map_location="cpu", weights_only=True)


class States:
    """The states of one run. They are written in the background, one at a time, the oldest go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Thread | None = None
        self._outcome: Exception | None = None
        self._room: dict[tuple[str, ...], torch.Tensor] = {}

    def write(self, name: str, parts: Mapping[str, Any], facts: Facts) -> None:
        """Copy a state and begin to write it; parts are bytes of a file of that name, or what torch.save takes.

        Raises NotSavedError for the state before this one.
        """
        self.wait()
        self._outcome = RuntimeError(
            "a state was not written: the error stands above"
        )  # until it is known
        self._writer = Thread(
            target=self._write, args=(name, self._copy(parts), facts), daemon=True
        )
        self._writer.start()

    def wait(self) -> None:
        """Return when the state is on the disk. Raises NotSavedError."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
            if self._outcome:
                raise self._outcome

    def newest(self) -> State | None:
        """The newest state that is whole; one that had to be passed over is said."""
        for path in reversed(self._paths()):
            try:
                return State(path, verify(path))
            except DamageError as damage:
                log.warning("passed over the state %s: %s", path, damage)
        return None

    def remove_newer(self, state: State) -> None:
        """Remove the states that were passed over: one that cannot be trusted is not the one before the next."""
        for path in self._paths():
            if path.name > state.path.name:
                shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove all states, and what a process that was killed left behind."""
        for path in self._paths():
            shutil.rmtree(path, ignore_errors=True)
        self.tidy()

    def tidy(self) -> None:
        """Remove what a process that was killed left behind."""
        for path in self.folder.glob(f"{STAGE}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _copy(self, value: Any, *place: str) -> Any:
        """The same dicts and lists with copies of their tensors in main memory, where those of the last state lay.

        Fresh memory costs ten times as much as the copying: the system hands it out page by page.
        """
        if isinstance(value, torch.Tensor):
            room = self._room.get(place)
            if room is None or room.shape != value.shape or room.dtype != value.dtype:
                room = self._room[place] = torch.empty_like(
                    value, device="cpu", memory_format=torch.contiguous_format
                )
            return room.copy_(value.detach())
        if isinstance(value, Mapping):
            return {key: self._copy(each, *place, str(key)) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(
                self._copy(each, *place, str(number)) for number, each in enumerate(value)
            )
        return value

    def _write(self, name: str, parts: Mapping[str, Any], facts: Facts) -> None:
        """The work of the thread."""
        try:
            self._write_and_prove(name, parts, facts)
            self._outcome = None
        except NotSavedError as error:
            self._outcome = error

    def _write_and_prove(self, name: str, parts: Mapping[str, Any], facts: Facts) -> None:
        older = self._paths()
        number = 1 + max((int(path.name.split("-")[1]) for path in older), default=0)
        path = write_state(self.folder, f"state-{number:06d}-{name}", parts, facts)
        try:
            verify(path)
        except DamageError as damage:
            shutil.rmtree(path, ignore_errors=True)
            raise NotSavedError(f"{path} did not come back as it was written: {damage}") from None
        for old in older[: len(older) + 1 - KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def _paths(self) -> list[Path]:
        """The states, oldest first, whole or not."""
        return sorted(
            path for path in self.folder.glob("state-*-*") if path.name.split("-")[1].isdigit()
        )


def write_state(folder: Path, name: str, parts: Mapping[str, Any], facts: Facts) -> Path:
    """The path of a state once all of it is on the disk. Raises NotSavedError, and leaves nothing behind then."""
    stage, target, total = folder / f"{STAGE}{name}", folder / name, _size(parts)
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        files = {}
        for part, value in parts.items():
            path = stage / (part if isinstance(value, bytes) else f"{part}.pt")
            with _HashedFile(path) as file:
                file.write(value) if isinstance(value, bytes) else torch.save(
                    value, cast(Any, file)
                )
                files[path.name] = {"bytes": file.size, "sha256": file.digest.hexdigest()}
        manifest = {"format": FORMAT, "files": files, "facts": dict(facts)}
        with _HashedFile(stage / MANIFEST) as file:
            file.write(_seal(manifest))
        sync(stage)
        stage.rename(target)
        sync(folder)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch.save turns what a file raises into a RuntimeError
        shutil.rmtree(stage, ignore_errors=True)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise NotSavedError(f"{target} ({total:,} bytes): {cause}") from error
    return target


def verify(path: Path) -> Facts:
    """The facts of a state whose every file is what was written. Raises DamageError."""
    try:
        text = (path / MANIFEST).read_bytes()
        manifest = json.loads(text)["manifest"]
        if _seal(manifest) != text or manifest["format"] != FORMAT:
            raise DamageError("its manifest is not what was written")
        for name, was in manifest["files"].items():
            with (path / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != was["bytes"]:
                    raise DamageError(f"{name} has {size} bytes instead of {was['bytes']}")
                if hashlib.file_digest(file, "sha256").hexdigest() != was["sha256"]:
                    raise DamageError(f"{name} is not what was written")
        return dict(manifest["facts"])
    except FileNotFoundError as error:
        raise DamageError(f"{Path(error.filename).name} is missing") from None
    except OSError as error:
        raise DamageError(
            f"{Path(error.filename or path).name} cannot be read: {error.strerror}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamageError("its manifest cannot be read") from None


def _size(value: Any) -> int:
    """Bytes of the tensors in it, or of itself."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    each = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, list | tuple)
        else ()
    )
    return sum(map(_size, each))


def _seal(manifest: Mapping[str, Any]) -> bytes:
    """The manifest with its own checksum."""
    checksum = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({"manifest": manifest, "sha256": checksum}, indent=1).encode()


class _HashedFile:
    """A new file that knows the size and sha256 of what was written, and is on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Write bytes, all of them."""
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        done = 0
        while done < len(view):
            done += os.write(self.descriptor, view[done : done + CHUNK])
        return len(view)

    def flush(self) -> None:
        """Nothing waits."""

    def __enter__(self) -> "_HashedFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self.descriptor)
        finally:
            os.close(self.descriptor)
