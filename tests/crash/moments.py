"""When a process is killed: drawn from a seed, as shares of what the unbroken run does."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["step", "clock", "write"]
Side = Literal["before", "half", "after"]

SIDES: tuple[Side, ...] = ("before", "half", "after")
KILLED_AGAIN = 5  # every fifth trial is killed a second time, soon after it resumed


@dataclass(frozen=True)
class Operation:
    """Something that a process did to its folder: what it is called, and the path below the folder."""

    name: str
    path: str


@dataclass(frozen=True)
class Kill:
    """A process kills itself at the step, or the operation on the disk, of this number; or is killed after seconds.

    Of several processes `rank` is the one; all others are killed `grace` seconds later.
    """

    kind: Kind
    number: int = 0
    side: Side = "before"
    seconds: float = 0.0
    rank: int = 0
    grace: float = 0.0


@dataclass(frozen=True)
class Unbroken:
    """What a run does that nobody kills."""

    steps: int
    seconds: float
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Moment:
    """A kill as a share (0 to 1) of a run's steps, seconds or operations."""

    kind: Kind
    share: float
    side: Side
    rank: int
    grace: float

    def __str__(self) -> str:
        return f"{self.kind}-{self.share:.3f}-{self.side}"

    def of(self, run: Unbroken) -> Kill:
        """The kill at this share of a run."""
        if self.kind == "step":
            return Kill(
                "step", int(self.share * run.steps), self.side, rank=self.rank, grace=self.grace
            )
        if self.kind == "clock":
            return Kill("clock", seconds=self.share * run.seconds, rank=self.rank, grace=self.grace)
        numbers = places(run.operations)
        # Only the main process writes.
        return Kill("write", numbers[int(self.share * len(numbers))], self.side, grace=self.grace)


def places(operations: Sequence[Operation]) -> list[int]:
    """The numbers of the operations to be killed at: of many writes to one file the first, one between, the last."""
    chosen: list[int] = []
    for (name, _), group in itertools.groupby(
        enumerate(operations), lambda pair: (pair[1].name, pair[1].path)
    ):
        numbers = [number for number, _ in group]
        some = {numbers[0], numbers[len(numbers) // 2], numbers[-1]} if name == "write" else numbers
        chosen.extend(sorted(some))
    return chosen


def draw(
    seed: str, processes: int, steps: int, clocks: int, writes: int
) -> list[tuple[Moment, ...]]:
    """The moments of all trials, each with one kill or two: anywhere in the steps, evenly over the writes."""
    rng = random.Random(seed)
    kinds = [
        *(("step", rng.random()) for _ in range(steps)),
        *(("clock", rng.random()) for _ in range(clocks)),
    ]
    kinds += [("write", (number + rng.random()) / writes) for number in range(writes)]
    again = _soon_after(rng, processes)
    trials = []
    for number, (kind, share) in enumerate(kinds):
        first = _moment(rng, kind, share, SIDES[number % 3], processes)
        trials.append(
            (first, next(again)) if number % KILLED_AGAIN == KILLED_AGAIN - 1 else (first,)
        )
    return trials


def _soon_after(rng: random.Random, processes: int) -> Iterator[Moment]:
    """Moments near the beginning, so that a run that has little left dies of them too."""
    for number in itertools.count():
        yield _moment(
            rng, ("step", "write")[number % 2], 0.15 * rng.random(), SIDES[number % 3], processes
        )


def _moment(rng: random.Random, kind: Kind, share: float, side: Side, processes: int) -> Moment:
    return Moment(kind, share, side, rng.randrange(processes), rng.choice((0.0, 0.2)))
