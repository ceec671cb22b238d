"""In which order rows are learned from: a function of seed and epoch, whatever the number of processes.

Nothing of it is kept by a generator that has moved on, so that a run that goes on in the middle of an epoch, or with
another number of processes, sees the rows that the unbroken run would have seen.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from hf_transfer.errors import UserError


class Order(Protocol):
    """The row numbers of an epoch, one after the other."""

    def __len__(self) -> int: ...

    def of_epoch(self, epoch: int) -> Sequence[int]:
        """The row numbers of this epoch, as many in each."""
        ...


@dataclass(frozen=True)
class PlainOrder:
    """Every row once: at random, as they stand, or those of like length together (`lengths`, `together` rows a step).

    Where each has several `views`, one after the other in the dataset, each epoch draws one of them.
    """

    rows: int
    seed: int
    strategy: str = "random"
    lengths: Sequence[int] = ()
    together: int = 1
    views: int = 1

    def __len__(self) -> int:
        return self.rows

    def of_epoch(self, epoch: int) -> Sequence[int]:
        """The row numbers of this epoch."""
        draw = torch.Generator().manual_seed(mix(self.seed, epoch))
        order: Sequence[int] = range(self.rows)
        if self.strategy == "group_by_length" and self.lengths:
            order = get_length_grouped_indices(list(self.lengths), self.together, generator=draw)
        elif self.strategy != "sequential":
            order = torch.randperm(self.rows, generator=draw).tolist()
        if self.views == 1:
            return order
        return (
            torch.tensor(order)
            + self.rows * torch.randint(self.views, (self.rows,), generator=draw)
        ).tolist()


@dataclass
class StepBatches(Sampler[list[int]]):
    """The batches of one process, as row numbers: its part of every step.

    A step has `batch_size` x `accumulated` x `processes` rows of the order; the last of an epoch has those that are
    left, divided evenly. Fewer than a row for each of its batches go to the step before: so a process has always one,
    and the steps are the same whether batches are accumulated or shared by processes.
    """

    order: Order
    batch_size: int
    accumulated: int = 1
    processes: int = 1
    process: int = 0
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if len(self.order) < self.processes:
            raise UserError(
                f"{len(self.order)} examples for {self.processes} processes", "start fewer of them"
            )

    @property
    def rows_a_step(self) -> int:
        """Rows of all processes in a step, but for the last one of an epoch."""
        return self.batch_size * self.accumulated * self.processes

    @property
    def borders(self) -> list[int]:
        """Where each step of an epoch begins, and where the last one ends."""
        total = len(self.order)
        borders = [*range(0, total, self.rows_a_step), total]
        if len(borders) > 2 and borders[-1] - borders[-2] < self.accumulated * self.processes:
            del borders[-2]
        return borders

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.borders) - 1

    def rows_of(self, step: int) -> list[int]:
        """The row numbers of all processes in a step of the run."""
        epoch, number = divmod(step, self.steps)
        begin, end = self.borders[number : number + 2]
        return list(self.order.of_epoch(epoch)[begin:end])

    def set_epoch(self, epoch: int) -> None:
        """What Trainer calls before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        borders = self.borders
        return sum(self._batches(end - begin) for begin, end in itertools.pairwise(borders))

    def __iter__(self) -> Iterator[list[int]]:
        rows, borders = np.asarray(self.order.of_epoch(self.epoch)), self.borders
        for begin, end in itertools.pairwise(borders):
            own = np.array_split(rows[begin:end], self.processes)[self.process]
            for batch in np.array_split(own, self._batches(end - begin)):
                yield batch.tolist()

    def _batches(self, rows: int) -> int:
        """Batches a process in a step of so many rows: the same for every process, none of them empty."""
        return max(
            1,
            min(
                self.accumulated,
                -(-rows // (self.batch_size * self.processes)),
                rows // self.processes,
            ),
        )


class StepLoader(DataLoader[Any]):
    """A DataLoader that hands the epoch on to its batches, as Accelerate's would, and calls `fetched` after each."""

    def __init__(self, *args: Any, fetched: Callable[[], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self.fetched = fetched

    def set_epoch(self, epoch: int) -> None:
        """What Trainer calls before each epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.fetched()
            yield batch


def plain_order(
    rows: Dataset, strategy: str, seed: int, together: int, views: int = 1
) -> PlainOrder:
    """The order of rows by the name of a strategy; `together` rows a step are of like length."""
    own = len(rows) // views
    lengths = (
        rows["length"][:own]
        if strategy == "group_by_length" and "length" in rows.column_names
        else ()
    )
    return PlainOrder(own, seed, strategy, tuple(lengths), together, views)


def mix(*words: int) -> int:
    """One seed (32 bits) out of several numbers."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
