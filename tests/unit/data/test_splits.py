import numpy as np
import pytest

from hf_transfer.data.splits import (
    deal_groups,
    examples_per_class,
    strata_of_numbers,
    strata_of_sets,
    stratified_holdout,
    stratified_sample,
)

LABELS = [0] * 50 + [1] * 30 + [2] * 20


def test_a_holdout_takes_the_share_of_every_class() -> None:
    kept, held = stratified_holdout(LABELS, 0.2, seed=0)
    assert np.bincount(np.array(LABELS)[held]).tolist() == [10, 6, 4]
    assert sorted([*kept, *held]) == list(range(100))


def test_a_class_of_one_member_is_not_held_out() -> None:
    kept, held = stratified_holdout([0] * 20 + [1], 0.2, seed=0)
    assert 20 in kept
    assert len(held) == 4


@pytest.mark.parametrize("share", [0.1, 0.15, 0.2, 0.5])
def test_a_holdout_of_many_small_classes_has_the_size_asked_for(share: float) -> None:
    labels = [label for label in range(100) for _ in range(4)]
    _, held = stratified_holdout(labels, share, seed=1)
    assert len(held) == round(400 * share)


def test_smaller_budgets_are_parts_of_larger_ones() -> None:
    budgets = [set(examples_per_class(LABELS, k, seed=3)) for k in (1, 5, 10)]
    assert [len(rows) for rows in budgets] == [3, 15, 30]
    assert budgets[0] < budgets[1] < budgets[2]


def test_another_seed_draws_other_examples() -> None:
    assert set(examples_per_class(LABELS, 5, seed=0)) != set(examples_per_class(LABELS, 5, seed=1))


def test_a_class_with_too_few_examples_gives_all_of_them() -> None:
    assert len(examples_per_class([0, 0, 0, 1], 3, seed=0)) == 4


def test_a_sample_keeps_the_proportions_of_the_classes() -> None:
    rows = stratified_sample(LABELS, 20, seed=0)
    assert np.bincount(np.array(LABELS)[rows]).tolist() == [10, 6, 4]


def test_sets_of_labels_are_strata_and_the_rare_ones_together() -> None:
    rows = [[1, 0]] * 10 + [[1, 1]] * 5 + [[0, 1]] * 2 + [[0, 0]]
    strata = strata_of_sets(rows)
    assert [len(set(part)) for part in (strata[:10], strata[10:15], strata[15:])] == [1, 1, 1]
    assert len(set(strata)) == 3


def test_tenths_of_numbers_are_strata_and_equal_numbers_stay_together() -> None:
    numbers = np.random.default_rng(0).normal(size=200)
    _, held = stratified_holdout(strata_of_numbers(numbers), 0.2, seed=0)
    assert (
        np.histogram(numbers[held], np.quantile(numbers, np.linspace(0, 1, 11)))[0].tolist()
        == [4] * 10
    )
    assert len(set(strata_of_numbers([0.0] * 90 + [1.0] * 10))) == 2


def test_groups_are_dealt_whole_in_about_the_shares_of_every_class() -> None:
    draw = np.random.default_rng(0)
    groups = draw.integers(0, 60, 2000)
    labels = (draw.random(2000) < np.where(groups < 20, 0.6, 0.05)).astype(int)
    part = deal_groups(labels, groups, [0.5, 0.3, 0.2], seed=0)
    assert all(len(set(part[groups == group])) == 1 for group in range(60))
    for label in (0, 1):
        shares = np.bincount(part[labels == label], minlength=3) / (labels == label).sum()
        assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_large_groups_are_held_out_as_often_as_small_ones() -> None:
    groups = np.repeat(np.arange(60), np.tile([2, 10, 30], 20))
    held_out = np.zeros(60)
    for seed in range(40):
        held_out[groups[deal_groups(groups % 2, groups, [0.8, 0.2], seed) == 1]] += 1
    small, middle, large = held_out.reshape(20, 3).sum(0) / (20 * 40)
    assert [small, middle, large] == pytest.approx([0.2] * 3, abs=0.06)


@pytest.mark.parametrize("groups", [5, 6, 9])
def test_every_part_gets_a_group_where_there_are_enough(groups: int) -> None:
    rows = np.repeat(np.arange(groups), np.arange(1, groups + 1) ** 2)
    assert set(deal_groups(rows % 2, rows, [0.2] * 5, seed=1)) == set(range(5))
    assert set(deal_groups(rows % 2, rows, [0.9, 0.1], seed=1)) == {0, 1}


def test_groups_are_dealt_alike_for_the_same_seed_alone() -> None:
    groups = np.arange(100) // 2
    dealt = [deal_groups(groups % 2, groups, [0.5, 0.5], seed).tolist() for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]
