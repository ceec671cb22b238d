"""Folders that are complete or absent, and small files that are replaced in one step.

A folder is filled under a temporary name. Each file is synced to the disk, its size and checksum
known; `manifest.json` is written last, sealed with a checksum of its own; then the folder is
renamed and its parent synced. Whenever the process dies, a folder under its final name is complete,
and reading verifies it.
"""

import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil
import xxhash

FORMAT = 1
MANIFEST = "manifest.json"

# Whether the content of files is compared with its checksum: at each reading, at the first one in
# a process, or not at all. Their sizes are always compared.
Check = Literal["always", "once", "sizes"]

# Files whose content this process has written or verified: device, inode, size, modification time,
# checksum.
verified_files: set[tuple[int, int, int, int, str]] = set()

_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{12})\.(?P<pid>\d+)\.[0-9a-f]{12}\.tmp")
_DAY = 86_400  # seconds


class DamageError(Exception):
    """A folder is not what was written; the text says what is wrong."""


class NotWrittenError(Exception):
    """The disk could not take what was written (full, no permission); nothing of it is left."""


class SealedFile(io.FileIO):
    """A new file, unbuffered, that knows the size and checksum of what was written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x", opener=lambda name, flags: os.open(name, flags, 0o666))
        self.path = path
        self._checksum = xxhash.xxh3_128()

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Write bytes, all of them, and return their number."""
        self._checksum.update(data)
        left = memoryview(data)
        while left:
            left = left[os.write(self.fileno(), left) :]
        return len(data)

    def seal(self) -> dict[str, Any]:
        """The file's entry in a manifest, once its content is on the disk."""
        os.fsync(self.fileno())
        status = os.fstat(self.fileno())
        checksum = self._checksum.hexdigest()
        verified_files.add(_identity(status, checksum))
        return {"name": self.path.name, "bytes": status.st_size, "xxh3_128": checksum}


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, to fill and publish; removed at the end unless renamed."""
    stage = temporary_path(path)
    stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_manifest(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write the manifest, a folder's last file. `contents` is JSON with an entry for each file."""
    with SealedFile(folder / MANIFEST) as file:
        file.write(_manifest_text({"format": FORMAT, **contents}))
        file.seal()
    _sync_folder(folder)


def publish(stage: Path, path: Path) -> None:
    """Rename a complete folder or file to its final name; a file there is replaced.

    Raises OSError if there is a folder of that name.
    """
    stage.replace(path)
    _sync_folder(path.parent)


def read_manifest(
    folder: Path,
    files: Callable[[dict[str, Any]], Iterable[Mapping[str, Any]]],
    check: Check = "always",
) -> dict[str, Any]:
    """The contents of a folder's manifest, once its files are verified.

    `files` finds the entries of the files in these contents. Raises DamageError if anything is not
    what was written, OSError if it cannot be read.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
        contents = json.loads(text)["entry"]
        # Byte by byte: nothing in it can have changed.
        if _manifest_text(contents) != text or contents["format"] != FORMAT:
            raise DamageError("its manifest is not what was written")
        for file in files(contents):
            _verify_file(folder / file["name"], file["bytes"], file["xxh3_128"], check)
    except FileNotFoundError as error:
        raise DamageError(f"{Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError):
        raise DamageError("its manifest cannot be read: damaged, or of another version") from None
    return dict(contents)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file in one step: a process that dies leaves the old content or the new."""
    for stage in path.parent.glob(f".{path.name}.*.tmp"):
        if is_abandoned(stage):
            shutil.rmtree(stage, ignore_errors=True)
    with staged_folder(path) as stage:
        with SealedFile(stage / path.name) as file:
            file.write(text.encode())
            file.seal()
        publish(file.path, path)


@contextmanager
def report_disk_errors(name: object) -> Iterator[None]:
    """Errors of the disk as NotWrittenError with the name of what was to be written.

    Only around our own writing: errors of what is written must pass through.
    """
    try:
        yield
    except (OSError, DamageError) as error:
        raise NotWrittenError(f"{name}: {error}") from error


def temporary_path(path: Path) -> Path:
    """A new name beside `path` that tells the process which uses it."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(6)}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether this is a name that `temporary_path` gave."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_abandoned(path: Path) -> bool:
    """Whether this is a temporary folder whose process has died; of another host, a day old."""
    name = _TEMPORARY.fullmatch(path.name)
    if name is None:
        return False
    if name["host"] == _host():
        return not psutil.pid_exists(int(name["pid"]))
    with suppress(FileNotFoundError):
        return time.time() - max(p.stat().st_mtime for p in (path, *path.glob("*"))) > _DAY
    return False


@cache
def _host() -> str:
    """This machine since it started, and this container: where a process id has a meaning."""
    facts = [platform.node()]
    with suppress(OSError):  # only Linux has these files
        facts += [
            Path("/proc/sys/kernel/random/boot_id").read_text(),
            str(Path("/proc/self/ns/pid").stat().st_ino),
        ]
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:12]


def _manifest_text(contents: Mapping[str, Any]) -> bytes:
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(contents).encode())
    return json.dumps({"entry": contents, "xxh3_128": checksum}, indent=1).encode()


def _verify_file(path: Path, size: int, checksum: str, check: Check) -> None:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size != size:
            raise DamageError(f"{path.name} has {status.st_size} bytes instead of {size}")
        identity = _identity(status, checksum)
        if check == "always" or (check == "once" and identity not in verified_files):
            if hashlib.file_digest(file, xxhash.xxh3_128).hexdigest() != checksum:
                raise DamageError(f"{path.name} is not what was written")
            verified_files.add(identity)


def _identity(status: os.stat_result, checksum: str) -> tuple[int, int, int, int, str]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, checksum


def _sync_folder(path: Path) -> None:
    """Sync the names in a folder to the disk."""
    if os.name != "nt":  # Windows opens no folders; NTFS has a journal of its names
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
