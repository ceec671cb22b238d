"""Processes that train together: when one dies or hangs, the others end too, and say which one it was."""

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

BEAT = 1.0  # seconds between two signs of life
SILENT = 4 * BEAT  # without a sign: dead
SHARE = 0.9  # of the timeout of the processes' own exchange, whose error names nobody
EXIT_LOST = 1


class Watch:
    """A thread that tells the other processes how far this one is, and ends it when one of them does not move.

    With one process it does nothing.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = SHARE * timeout
        self.count = 0
        self.moved_at = time.monotonic()
        self.several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1

    def move(self) -> None:
        """Take note that the main thread has come one step further, in the same places as in all processes."""
        self.count += 1
        self.moved_at = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context the processes watch each other. Raises UserError in place of a broken exchange."""
        if not self.several:
            yield
            return
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.store = PrefixStore("hf_transfer", distributed_c10d._get_default_store())
        self.move()
        self.seen = dict.fromkeys(range(self.size), ("0 0", self.moved_at))
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        except RuntimeError as error:
            lost = self._find_silent() if _is_of_exchange(error) else []
            if not lost:
                raise
            raise UserError(*self._say(lost, "is gone")) from error
        finally:
            ended.set()
            thread.join()

    def _watch(self, ended: threading.Event) -> None:
        """Beat, and look at the others where this process has waited too long."""
        beat = 0
        while not ended.wait(BEAT):
            beat += 1
            self.store.set(f"{self.rank}", f"{self.count} {beat}")
            waited = time.monotonic() - self.moved_at
            self._look()
            if waited > self.timeout:
                self._end(waited)

    def _look(self) -> None:
        """Note what the others say of themselves, and when they said something new."""
        for rank in range(self.size):
            if self.store.check([f"{rank}"]):
                said = self.store.get(f"{rank}").decode()
                if self.seen[rank][0] != said:
                    self.seen[rank] = (said, time.monotonic())

    def _find_silent(self) -> list[int]:
        """The processes that give no sign of life, after waiting for one."""
        time.sleep(SILENT + BEAT)
        now = time.monotonic()
        return [
            rank
            for rank, (_, at) in sorted(self.seen.items())
            if rank != self.rank and now - at > SILENT
        ]

    def _end(self, waited: float) -> None:
        """End this process, at once: its main thread waits for what will not come."""
        time.sleep(BEAT)  # for the others' last word
        self._look()
        counts = {rank: int(said.split()[0]) for rank, (said, _) in self.seen.items()}
        behind = [rank for rank, count in sorted(counts.items()) if count == min(counts.values())]
        everyone = len(behind) == self.size
        message, hint = self._say(
            behind, f"{'have' if everyone else 'has'} not moved for {waited:.0f} s"
        )
        if self.rank == min(set(counts) - set(behind), default=0):
            log.error("error: %s\nhint: %s", message, hint)
        os._exit(EXIT_LOST)

    def _say(self, ranks: list[int], what: str) -> tuple[str, str]:
        named = f"process {', '.join(map(str, ranks))} of {self.size} (by rank)"
        return (
            f"{named} {what}",
            "see what it said above; the same command goes on from the last state",
        )


def _is_of_exchange(error: RuntimeError) -> bool:
    """Whether an error is about the exchange between processes, by its class or, for gloo, by its text."""
    return (
        isinstance(error, DistBackendError)
        or "gloo" in str(error)
        or "Connection closed by peer" in str(error)
    )
