"""Heartbeats between processes: when one dies or hangs, the others end too and name it."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed import DistBackendError, PrefixStore, distributed_c10d

from hf_transfer.errors import UserError

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two heartbeats
DEAD_AFTER = 4 * INTERVAL  # seconds without a heartbeat
# Of the timeout of collective operations (--ddp_timeout), whose own error names no process.
TIMEOUT_FRACTION = 0.9
EXIT_CODE = 1


class Heartbeat:
    """A thread that publishes the progress of this process, and ends it when another one hangs.

    The processes count their progress in the same places. The thread still runs while the main
    thread waits in a collective operation for a process that does not come. With one process it
    does nothing. `timeout` is that of collective operations, in seconds.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = TIMEOUT_FRACTION * timeout
        self.progress = 0
        self.advanced_at = time.monotonic()
        is_distributed = torch.distributed.is_initialized()
        self.is_needed = is_distributed and torch.distributed.get_world_size() > 1

    def advance(self) -> None:
        """Count one unit of progress of the main thread."""
        self.progress += 1
        self.advanced_at = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the context the processes monitor each other.

        Raises UserError in place of the error of a collective operation with a dead process.
        """
        if not self.is_needed:
            yield
            return
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self.store = PrefixStore("hf_transfer", distributed_c10d._get_default_store())
        self.advance()
        # Rank -> its newest message "progress beat", and when it was first seen.
        self.seen = dict.fromkeys(range(self.world_size), ("0 0", self.advanced_at))
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        except RuntimeError as error:
            dead = self._find_dead() if _is_collective(error) else []
            if not dead:
                raise
            raise UserError(*self._describe(dead, "is gone")) from error
        finally:
            stop.set()
            thread.join()

    def _beat(self, stop: threading.Event) -> None:
        """Publish heartbeats, and end the process when it has waited too long for another one."""
        beat = 0
        while not stop.wait(INTERVAL):
            beat += 1
            self.store.set(f"{self.rank}", f"{self.progress} {beat}")
            waited = time.monotonic() - self.advanced_at
            self._read_messages()
            if waited > self.timeout:
                self._exit(waited)

    def _read_messages(self) -> None:
        for rank in range(self.world_size):
            if self.store.check([f"{rank}"]):
                message = self.store.get(f"{rank}").decode()
                if self.seen[rank][0] != message:
                    self.seen[rank] = (message, time.monotonic())

    def _find_dead(self) -> list[int]:
        """Ranks without a heartbeat, after waiting for one."""
        time.sleep(DEAD_AFTER + INTERVAL)
        now = time.monotonic()
        silent = [rank for rank, (_, at) in self.seen.items() if now - at > DEAD_AFTER]
        return sorted({*silent} - {self.rank})

    def _exit(self, waited: float) -> None:
        """End this process at once: its main thread waits for a process that will not come."""
        time.sleep(INTERVAL)  # for the last message of the others
        self._read_messages()
        progress = {rank: int(message.split()[0]) for rank, (message, _) in self.seen.items()}
        behind = [rank for rank in progress if progress[rank] == min(progress.values())]
        verb = "have" if len(behind) == self.world_size else "has"
        described = self._describe(behind, f"{verb} not moved for {waited:.0f} s")
        # One process reports: the first that is not behind.
        if self.rank == min(set(progress) - set(behind), default=0):
            log.error("error: %s\nhint: %s", *described)
        os._exit(EXIT_CODE)

    def _describe(self, ranks: list[int], what: str) -> tuple[str, str]:
        named = f"process {', '.join(map(str, ranks))} of {self.world_size} (by rank)"
        hint = "see its output above; the same command resumes from the last state"
        return f"{named} {what}", hint


def _is_collective(error: RuntimeError) -> bool:
    """Whether a collective operation raised the error: by its class, or with gloo by its text."""
    text = str(error)
    by_text = "gloo" in text or "Connection closed by peer" in text
    return by_text or isinstance(error, DistBackendError)
