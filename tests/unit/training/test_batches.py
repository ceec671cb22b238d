"""Which rows a step has: all once an epoch, the same ones with any number of processes."""

from collections import Counter
from itertools import chain, product

import pytest
import torch
from datasets import Dataset

from hf_transfer.errors import UserError
from hf_transfer.training.batches import (
    SampledOrder,
    StepBatches,
    StepLoader,
    derive_seed,
    sampled_order,
)

Batch = list[int]


def _batches(
    rows: int, batch_size: int, accumulated: int, processes: int, epoch: int = 0
) -> list[list[Batch]]:
    """The batches of an epoch, by process."""
    each = []
    for process in range(processes):
        batches = StepBatches(
            SampledOrder(rows, seed=1), batch_size, accumulated, processes, process
        )
        batches.set_epoch(epoch)
        each.append(list(batches))
        assert len(batches) == len(each[-1])
    return each


def _steps(
    rows: int, batch_size: int, accumulated: int, processes: int, epoch: int = 0
) -> list[Batch]:
    """The rows of all processes in each step of an epoch, as Trainer takes batches: `accumulated` at a time."""
    each = _batches(rows, batch_size, accumulated, processes, epoch)
    begins = range(0, len(each[0]), accumulated)
    return [
        list(chain(*(chain(*own[begin : begin + accumulated]) for own in each))) for begin in begins
    ]


SIZES = [
    (rows, batch, accumulated, processes)
    for rows, batch, accumulated, processes in product(
        range(1, 41), (1, 2, 3, 5), (1, 2, 3), (1, 2, 3, 4)
    )
    if rows >= processes
]


def test_there_is_something_to_sweep() -> None:
    assert len(SIZES) > 1500


def test_every_row_is_seen_once_an_epoch_by_one_process() -> None:
    for size in SIZES:
        seen = list(chain(*chain(*_batches(*size))))
        assert sorted(seen) == list(range(size[0])), size


def test_every_process_has_a_row_in_every_batch_and_as_many_batches_as_the_others() -> None:
    for size in SIZES:
        each = _batches(*size)
        assert len({len(own) for own in each}) == 1, size
        assert min(len(batch) for batch in chain(*each)) >= 1, size


def test_the_rows_of_a_step_are_shared_evenly() -> None:
    for size in SIZES:
        for batches in zip(*_batches(*size), strict=True):
            lengths = [len(batch) for batch in batches]
            assert max(lengths) - min(lengths) <= 1, size


def test_only_the_last_step_of_an_epoch_has_other_than_the_requested_rows() -> None:
    for size in SIZES:
        rows, batch, accumulated, processes = size
        full, lengths = batch * accumulated * processes, [len(step) for step in _steps(*size)]
        assert lengths[:-1] == [full] * (len(lengths) - 1), size
        assert 0 < lengths[-1] < full + accumulated * processes, size
        assert sum(lengths) == rows, size


def test_the_rows_of_a_step_by_its_number_are_those_that_the_loader_gives() -> None:
    for size in SIZES[::3]:
        batches = StepBatches(SampledOrder(size[0], seed=1), *size[1:])
        for epoch in (0, 1, 4):
            steps = _steps(*size, epoch=epoch)
            assert batches.steps == len(steps), size
            by_number = [
                batches.rows_of(epoch * batches.steps + number) for number in range(batches.steps)
            ]
            assert [sorted(step) for step in steps] == [sorted(step) for step in by_number], size


def test_a_step_has_the_same_rows_however_many_processes_share_it() -> None:
    for rows, batch_size in product(range(4, 60), (1, 2, 3)):
        shared = [
            [sorted(step) for step in _steps(rows, batch_size, accumulated, processes)]
            for accumulated, processes in ((4, 1), (2, 2), (1, 4))
        ]
        assert shared[0] == shared[1] == shared[2], (rows, batch_size)


@pytest.mark.parametrize(("rows", "steps"), [(8, 1), (9, 1), (11, 1), (12, 2), (17, 2)])
def test_what_would_leave_a_process_without_a_row_goes_to_the_step_before(
    rows: int, steps: int
) -> None:
    each = _batches(rows, batch_size=2, accumulated=1, processes=4)
    assert [len(own) for own in each] == [steps] * 4


def test_too_few_rows_for_the_processes_are_refused() -> None:
    with pytest.raises(UserError, match="3 examples for 4 processes"):
        StepBatches(SampledOrder(3, seed=0), batch_size=2, processes=4)


def test_epochs_differ_and_are_reproducible() -> None:
    order = SampledOrder(50, seed=3)
    epochs = [tuple(order.of_epoch(epoch)) for epoch in range(5)]
    assert len(set(epochs)) == 5
    assert epochs == [tuple(SampledOrder(50, seed=3).of_epoch(epoch)) for epoch in range(5)]
    assert tuple(SampledOrder(50, seed=4).of_epoch(0)) != epochs[0]


def test_the_order_depends_on_no_generator_of_the_process() -> None:
    torch.manual_seed(0)
    before, state = SampledOrder(50, seed=3).of_epoch(1), torch.get_rng_state()
    torch.manual_seed(9)
    assert SampledOrder(50, seed=3).of_epoch(1) == before
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_epoch_is_the_same_whichever_was_iterated_before_it() -> None:
    moved, fresh = (StepBatches(SampledOrder(11, seed=0), 2) for _ in range(2))
    for epoch in range(3):
        moved.set_epoch(epoch)
        list(moved)
    fresh.set_epoch(2)
    assert list(fresh) == list(moved)


def test_sequential_rows_keep_their_order_in_every_epoch() -> None:
    order = SampledOrder(7, seed=0, strategy="sequential")
    assert [list(order.of_epoch(epoch)) for epoch in (0, 5)] == [list(range(7))] * 2


def test_each_epoch_draws_one_view_of_each_row() -> None:
    order = SampledOrder(30, seed=0, views=4)
    drawn = [order.of_epoch(epoch) for epoch in range(12)]
    assert all(sorted(row % 30 for row in epoch) == list(range(30)) for epoch in drawn)
    assert {row // 30 for epoch in drawn for row in epoch} == {0, 1, 2, 3}
    of_the_first = {row // 30 for epoch in drawn for row in epoch if row % 30 == 0}
    assert len(of_the_first) > 1


def test_rows_of_like_length_come_together_and_each_of_them_once() -> None:
    lengths = [
        int(value)
        for value in torch.randint(1, 500, (400,), generator=torch.Generator().manual_seed(0))
    ]
    rows = Dataset.from_dict({"length": lengths})

    def spread(strategy: str) -> float:
        order = list(sampled_order(rows, strategy, seed=0, group_size=8).of_epoch(0))
        assert sorted(order) == list(range(400))
        steps = [[lengths[row] for row in order[begin : begin + 8]] for begin in range(0, 400, 8)]
        return sum(max(step) - min(step) for step in steps) / len(steps)

    assert spread("group_by_length") < spread("random") / 5


def test_rows_without_lengths_are_drawn_at_random() -> None:
    rows = Dataset.from_dict({"text": list("abcdefgh")})
    assert list(sampled_order(rows, "group_by_length", 0, 4).of_epoch(0)) == list(
        SampledOrder(8, 0).of_epoch(0)
    )


def test_views_of_rows_of_like_length_are_drawn_among_their_own() -> None:
    rows = Dataset.from_dict({"length": [*range(1, 21), *range(1, 21)]})
    order = sampled_order(rows, "group_by_length", 0, 4, views=2)
    assert len(order) == 20
    assert sorted(row % 20 for row in order.of_epoch(0)) == list(range(20))


IMBALANCED = [0] * 83 + [1] * 3 + [4] * 14  # of 100 rows


def test_the_sampler_draws_each_class_equally_often_in_every_epoch() -> None:
    order = SampledOrder(100, seed=2, labels=IMBALANCED)
    drawn = [Counter(map(IMBALANCED.__getitem__, order.of_epoch(epoch))) for epoch in range(6)]
    for counts in drawn:
        assert sorted(counts.values()) == [33, 33, 34]
    assert set(sum(drawn[:3], Counter()).values()) == {100}


def test_the_sampler_draws_all_rows_of_a_class_before_one_comes_again() -> None:
    order = SampledOrder(100, seed=2, labels=IMBALANCED)
    rows = [row for epoch in range(5) for row in order.of_epoch(epoch)]
    times = [Counter(row for row in rows if IMBALANCED[row] == label) for label in (0, 1, 4)]
    assert list(map(len, times)) == [83, 3, 14]
    assert all(max(each.values()) - min(each.values()) <= 1 for each in times)


def test_the_rows_of_the_sampler_are_a_function_of_seed_and_epoch_for_any_processes() -> None:
    first, again, other = (SampledOrder(100, seed, labels=IMBALANCED) for seed in (1, 1, 2))
    again.of_epoch(7)
    assert list(first.of_epoch(3)) == list(again.of_epoch(3)) != list(other.of_epoch(3))
    one, two = (StepBatches(first, 12 // processes, 1, processes) for processes in (1, 2))
    steps = range(2 * one.steps)
    assert list(map(one.rows_of, steps)) == list(map(two.rows_of, steps))


def test_the_sampler_keeps_like_lengths_together_and_draws_views() -> None:
    lengths = torch.randint(1, 500, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    labels = IMBALANCED * 4
    rows = Dataset.from_dict({"length": lengths * 2, "label": labels * 2})
    order = sampled_order(rows, "group_by_length", 0, 8, views=2, by_class=True).of_epoch(0)
    assert sorted(Counter(labels[row % 400] for row in order).values()) == [133, 133, 134]
    assert {row // 400 for row in order} == {0, 1}
    steps = [[lengths[row % 400] for row in order[begin : begin + 8]] for begin in range(0, 400, 8)]
    assert sum(max(step) - min(step) for step in steps) / len(steps) < 100


def test_a_loader_passes_the_epoch_on_to_its_batches() -> None:
    batches = StepBatches(SampledOrder(20, seed=0), 4)
    loader = StepLoader(
        list(range(20)), batch_sampler=batches, collate_fn=list, on_batch=lambda: None
    )
    loader.set_epoch(3)
    assert batches.epoch == 3
    assert list(loader) == list(batches)


def test_seeds_of_different_numbers_differ() -> None:
    numbers = [
        (seed, step, batch) for seed in (0, 1, 42) for step in range(40) for batch in range(4)
    ]
    assert len({derive_seed(*each) for each in numbers}) == len(numbers)
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert all(0 <= derive_seed(*each) < 2**32 for each in numbers)
