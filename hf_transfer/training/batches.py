"""The order of training rows and their batches: functions of seed and epoch.

No generator carries a state from one epoch to the next. So a run that resumes in the middle of an
epoch, or with another number of processes, sees the rows that it would have seen otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from hf_transfer.errors import UserError


class RowOrder(Protocol):
    """The row numbers of an epoch, one after the other."""

    def __len__(self) -> int: ...

    def of_epoch(self, epoch: int) -> Sequence[int]:
        """The row numbers of an epoch, as many in each."""


@dataclass(frozen=True)
class SampledOrder:
    """Every row once, by `strategy`: random, sequential or group_by_length.

    With `labels` (a class for each row), as many rows, each class equally often (rows_by_class).
    The latter needs `lengths` of the rows, and gives `group_size` rows in a row a similar length.
    Where the dataset has several `views` of each row, one view of all rows after the other, each
    epoch draws one of them.
    """

    rows: int
    seed: int
    strategy: str = "random"
    lengths: Sequence[int] = ()
    group_size: int = 1
    views: int = 1
    labels: Sequence[int] = ()

    def __len__(self) -> int:
        return self.rows

    def of_epoch(self, epoch: int) -> Sequence[int]:
        """The row numbers of an epoch."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        drawn = rows_by_class(self.labels, self.seed, epoch) if self.labels else range(self.rows)
        order: Sequence[int] = range(self.rows)
        if self.strategy == "group_by_length" and self.lengths:
            lengths = list(map(self.lengths.__getitem__, drawn))
            order = get_length_grouped_indices(lengths, self.group_size, generator=generator)
        elif self.strategy != "sequential":
            order = torch.randperm(self.rows, generator=generator).tolist()
        order = list(map(drawn.__getitem__, order))
        if self.views == 1:
            return order
        views = torch.randint(self.views, (self.rows,), generator=generator)
        return (torch.tensor(order) + self.rows * views).tolist()


@dataclass
class StepBatches(Sampler[list[int]]):
    """The batches of one process, as row numbers: its part of every step.

    A step has `batch_size` x `accumulation_steps` x `processes` rows of the order. The last step of
    an epoch has the remaining rows, divided evenly; if there is less than one row for each of its
    batches, they go to the step before. So every process has a row in every batch, and the steps
    are the same whether batches are accumulated or divided among processes.
    """

    order: RowOrder
    batch_size: int
    accumulation_steps: int = 1
    processes: int = 1
    process_index: int = 0
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if len(self.order) < self.processes:
            message = f"{len(self.order)} examples for {self.processes} processes"
            raise UserError(message, "start fewer processes")

    @property
    def step_size(self) -> int:
        """Rows of all processes in a step, except for the last one of an epoch."""
        return self.batch_size * self.accumulation_steps * self.processes

    @property
    def boundaries(self) -> list[int]:
        """Where each step of an epoch begins, and where the last one ends."""
        total = len(self.order)
        boundaries = [*range(0, total, self.step_size), total]
        batches_per_step = self.accumulation_steps * self.processes
        if len(boundaries) > 2 and boundaries[-1] - boundaries[-2] < batches_per_step:
            del boundaries[-2]
        return boundaries

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return len(self.boundaries) - 1

    def rows_of(self, step: int) -> list[int]:
        """The row numbers of all processes in a step of the run."""
        epoch, number = divmod(step, self.steps)
        begin, end = self.boundaries[number : number + 2]
        return list(self.order.of_epoch(epoch)[begin:end])

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(map(self._batches, np.diff(self.boundaries).tolist()))

    def __iter__(self) -> Iterator[list[int]]:
        for step in np.split(self.order.of_epoch(self.epoch), self.boundaries[1:-1]):
            own = np.array_split(step, self.processes)[self.process_index]
            for batch in np.array_split(own, self._batches(len(step))):
                yield batch.tolist()

    def _batches(self, rows: int) -> int:
        """Batches per process in a step with this number of rows.

        The same for every process, and none of them is empty.
        """
        batches = -(-rows // (self.batch_size * self.processes))
        return max(1, min(self.accumulation_steps, batches, rows // self.processes))


class StepLoader(DataLoader[Any]):
    """A DataLoader that passes the epoch on to its batches, as Accelerate's does.

    `on_batch` is called after each batch that was loaded.
    """

    def __init__(self, *args: Any, on_batch: Callable[[], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_batch = on_batch

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.on_batch()
            yield batch


def rows_by_class(labels: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Sorted row numbers, as many as there are labels, each class equally often.

    What the division leaves over goes to other classes in each epoch. The rows of a class come in
    random order, over the epochs too: all of them once, then all again.
    """
    values = np.asarray(labels)
    present = np.unique(values)
    each, left = divmod(len(values), len(present))
    drawn: list[int] = []
    for number, label in enumerate(present.tolist()):
        members = np.flatnonzero(values == label)
        # The places of an epoch in the endless sequence of the rows of this class.
        begin, end = (
            which * each + (which * left - number + len(present) - 1) // len(present)
            for which in (epoch, epoch + 1)
        )
        for again in range(begin // len(members), -(-end // len(members))):
            shuffled = np.random.default_rng((seed, label, again)).permutation(members)
            first = again * len(members)
            drawn += shuffled[max(begin - first, 0) : end - first].tolist()
    return sorted(drawn)


def sampled_order(
    rows: Dataset,
    strategy: str,
    seed: int,
    group_size: int,
    views: int = 1,
    by_class: bool = False,
) -> SampledOrder:
    """The order of rows by a --train_sampling_strategy.

    With group_by_length, `group_size` rows have a similar length; rows without lengths are random.
    `by_class` draws each class equally often.
    """
    rows_per_view = len(rows) // views
    lengths: Sequence[int] = ()
    if strategy == "group_by_length" and "length" in rows.column_names:
        lengths = tuple(rows["length"][:rows_per_view])
    labels = rows["label"][:rows_per_view] if by_class else ()
    return SampledOrder(rows_per_view, seed, strategy, lengths, group_size, views, tuple(labels))


def derive_seed(*numbers: int) -> int:
    """One seed (32 bits) from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
