"""Programs of ours as real processes that a test can watch and send signals to.

They are forked by one process that has imported everything: a second each, where `python` takes ten.
`python -m tests.forked` is that process: it reads jobs from stdin and answers on stdout, a line of JSON each.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

PATIENCE = 60.0  # seconds until a test gives up


class ForkServer:
    """The process that forks, as a child of this one."""

    def __init__(self, folder: Path) -> None:
        own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.folder = folder
        self.started = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"],
            cwd=ROOT,
            env={**os.environ, **own, "HF_HOME": str(folder / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **job: Any) -> Any:
        """What the server answers."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, script: str, *flags: object, **environment: object) -> "Started":
        """A process that runs a recipe, or a script by its path."""
        self.started += 1
        path = ROOT / "recipes" / f"{script}.py" if "/" not in script else Path(script)
        log = self.folder / f"{self.started}.txt"
        words = [str(path), *map(str, flags)]
        pid = self.ask(
            words=words, log=str(log), environment={name: str(v) for name, v in environment.items()}
        )
        return Started(self, pid, log)

    def start_several(self, processes: int, script: str, *flags: object) -> list["Started"]:
        """The processes of one run, started as a launcher does; nobody ends the others if one of them ends."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        shared = {
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
        }
        return [
            self.start(script, *flags, **shared, MASTER_PORT=port, RANK=rank, LOCAL_RANK=rank)
            for rank in range(processes)
        ]

    def run(self, script: str, *flags: object) -> "Started":
        """A process that runs a recipe, once it has ended."""
        process = self.start(script, *flags)
        process.wait()
        return process

    def close(self) -> None:
        """End it."""
        self.process.communicate()


@functools.cache
def fork_server(folder: Path) -> ForkServer:
    """The one server of all tests that keep their things in a folder; it ends with this process."""
    (folder / "forked").mkdir()
    server = ForkServer(folder / "forked")
    atexit.register(server.close)
    return server


@dataclass
class Started:
    """A process: its exit code, once it has ended, and what it has said so far."""

    server: ForkServer
    pid: int
    log: Path
    code: int | None = field(default=None, init=False)

    @property
    def said(self) -> str:
        """Its stdout and stderr together."""
        return self.log.read_text(encoding="utf-8")

    @property
    def has_ended(self) -> bool:
        """Whether it is no more."""
        if self.code is None:
            self.code = self.server.ask(ended=self.pid)
        return self.code is not None

    def wait(self) -> int:
        """Its exit code, minus the number of the signal that it died of."""
        self.wait_until(lambda: False)
        assert self.code is not None
        return self.code

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Return as soon as something is so, or the process has ended; kills it if it takes too long."""
        began = time.monotonic()
        while not self.has_ended and not condition():
            if time.monotonic() - began > PATIENCE:
                self.send(signal.SIGKILL)
                pytest.fail(f"it does not come to an end:\n{self.said}")
            time.sleep(0.002)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; it is there until its exit code has been asked for."""
        os.kill(self.pid, number)


def serve() -> None:
    """Answer jobs until there are no more."""
    import hf_transfer

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get in between
    for module in pkgutil.walk_packages(hf_transfer.__path__, "hf_transfer."):
        importlib.import_module(module.name)
    gc.freeze()  # else each child spends half a second on looking through what all of them share
    for line in sys.stdin:
        job = json.loads(line)
        answer = _ended(job["ended"]) if "ended" in job else os.fork() or _be_a_run(job)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _ended(child: int) -> int | None:
    """The exit code of a child that is no more; what it had to import is there for the next one."""
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        return None
    listed = _modules_of(child)
    if listed.exists():
        for name in json.loads(listed.read_text()):
            if name not in sys.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        listed.unlink()
        gc.freeze()
    return os.waitstatus_to_exitcode(status)


def _modules_of(child: int) -> Path:
    return Path(os.environ["HF_HOME"]) / f"modules-of-{child}.json"


def _be_a_run(job: Mapping[str, Any]) -> None:
    """Run a script as __main__, with all that follows from how it ends; never returns."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(job["environment"])
    sys.argv, sys.orig_argv = job["words"], [sys.executable, *job["words"]]
    listed = _modules_of(os.getpid())
    listed.parent.mkdir(exist_ok=True)
    atexit.register(lambda: listed.write_text(json.dumps(list(sys.modules))))
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    serve()
