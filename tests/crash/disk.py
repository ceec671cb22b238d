"""Every change of a folder by this process, numbered; at one of them it can kill itself.

Wrapped is what Python code changes a folder with: functions of `os`, files that are opened for writing, and the two
writers that do it in native code (safetensors, torch.save by path).
"""

import builtins
import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch

from tests.crash.moments import Kill, Operation

BY_PATH = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "truncate")
BY_DESCRIPTOR = ("fsync", "ftruncate")
FOR_WRITING = set("wxa+")


def die() -> NoReturn:
    """End as `kill -9` ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("this is not reached")


class DiskWatch:
    """The operations on a folder, and the kill at one of them; cannot be taken off."""

    def __init__(self, root: Path, kill: Kill | None) -> None:
        self.root = f"{root}/"
        self.kill = kill if kill and kill.kind == "write" else None
        self.operations: list[Operation] = []
        self._lock = threading.Lock()  # states are written in the background

    def install(self) -> None:
        """Watch from now on."""
        for name in BY_PATH:
            self._wrap(os, name, lambda args, options: self._inside(args[0], options.get("dir_fd")))
        for name in BY_DESCRIPTOR:
            self._wrap(os, name, lambda args, _: self._of_descriptor(args[0]))
        self._wrap(os, "open", self._created)
        for owner, name in ((safetensors.torch, "serialize_file"), (torch, "save")):
            self._wrap(
                owner,
                name,
                lambda args, _: self._inside(args[1]),
                _half_a_file(getattr(owner, name)),
            )
        write = os.write

        def half(args: Any, _: Any) -> None:
            write(args[0], args[1][: len(args[1]) // 2])

        self._wrap(os, "write", lambda args, _: self._of_descriptor(args[0]), half)
        opened = self._watched_open(builtins.open)
        builtins.open = io.open = opened  # type: ignore[assignment]

    def _wrap(
        self,
        owner: Any,
        name: str,
        place: Callable[[Any, Any], str | None],
        half: Callable[[Any, Any], None] | None = None,
    ) -> None:
        """Let a function count as an operation on the folder; `place` is where in it, `half` does half of it."""
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            where = place(args, options)
            if where is None:
                return real(*args, **options)
            return self._do(
                name, where, lambda: real(*args, **options), half and (lambda: half(args, options))
            )

        setattr(owner, name, call)

    def _do(
        self, name: str, place: str, complete: Callable[[], Any], half: Callable[[], None] | None
    ) -> Any:
        with self._lock:
            is_the_one = self.kill is not None and len(self.operations) == self.kill.number
            self.operations.append(Operation(name, place))
        if not is_the_one:
            return complete()
        assert self.kill
        try:
            if self.kill.side == "half" and half:
                half()
            elif self.kill.side != "before":
                complete()
        finally:  # even after an error: a folder is often created that exists already
            die()

    def _inside(self, path: Any, folder: int | None = None) -> str | None:
        """A path relative to the root, or None if it is elsewhere, or no path."""
        if not isinstance(path, str | os.PathLike):
            return None
        full = (
            str(Path(f"/proc/self/fd/{folder}").readlink() / path)
            if folder is not None
            else os.fspath(path)
        )
        return full.removeprefix(self.root) if full.startswith(self.root) else None

    def _of_descriptor(self, descriptor: int) -> str | None:
        return self._inside(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115 - ten thousand times a run

    def _created(self, args: Any, options: Any) -> str | None:
        return self._inside(args[0], options.get("dir_fd")) if args[1] & os.O_CREAT else None

    def _watched_open(self, real: Any) -> Any:
        def call(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            where = self._inside(file) if FOR_WRITING & set(mode) else None
            if where is None:
                return real(file, mode, *args, **options)
            opened = self._do("open", where, lambda: real(file, mode, *args, **options), None)
            write = opened.write

            def half(data: Any) -> None:
                write(data[: len(data) // 2])
                opened.flush()

            opened.write = lambda data: self._do(
                "write", where, lambda: write(data), lambda: half(data)
            )
            return opened

        return call


def _half_a_file(writer: Callable[..., Any]) -> Callable[[Any, Any], None]:
    """What a native writer leaves when it dies: the first half of the file."""

    def half(args: Any, options: Any) -> None:
        writer(*args, **options)
        with Path(args[1]).open("rb+") as file:
            file.truncate(Path(args[1]).stat().st_size // 2)

    return half
