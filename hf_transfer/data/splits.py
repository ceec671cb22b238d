"""Splits and samples of rows: stratified, and the same for the same seed."""

from collections.abc import Sequence

import numpy as np

MIN_STRATUM = 5  # rows; a fifth of fewer is none
DEALS = 10  # orders that are tried to share groups out
MAX_DEALT = 20_000  # groups in all of them: beyond, the order matters little


def strata_of_sets(rows: Sequence[Sequence[float]] | np.ndarray) -> list[int]:
    """Stratum of each multi-hot row: one per set of labels; the rare sets together are one."""
    _, which, counts = np.unique(np.asarray(rows), axis=0, return_inverse=True, return_counts=True)
    which = which.ravel()
    return np.where(counts[which] < MIN_STRATUM, len(counts), which).tolist()


def strata_of_numbers(values: Sequence[float]) -> list[int]:
    """Stratum of each value: one per tenth, from small to large; equal values share theirs."""
    borders = np.quantile(values, np.arange(1, 10) / 10)
    return np.searchsorted(borders, values, side="right").tolist()


def stratified_holdout(
    labels: Sequence[int], fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted row numbers (remaining, held out), about `fraction` of every class held out.

    At least one row of a class remains, so a class of one row is never held out. What rounding
    leaves over goes to the classes with the largest remainders, so that the total is right too.
    """
    groups = _shuffled_groups(labels, seed).values()
    sizes = np.array(list(map(len, groups)))
    exact = sizes * fraction
    counts = np.minimum(exact.astype(int), sizes - 1)
    missing = round(sum(exact)) - sum(counts)
    for group in np.argsort(counts - exact, kind="stable"):
        if missing > 0 and counts[group] < sizes[group] - 1:
            counts[group] += 1
            missing -= 1
    parts = [np.split(rows, [count]) for rows, count in zip(groups, counts, strict=True)]
    held_out, remaining = map(np.concatenate, zip(*parts, strict=True))
    return np.sort(remaining), np.sort(held_out)


def examples_per_class(labels: Sequence[int], k: int, seed: int) -> np.ndarray:
    """Sorted row numbers of `k` examples per class; of a smaller class, all.

    Nested: for one seed, the rows of a smaller `k` are among those of a larger one.
    """
    return np.sort(np.concatenate([rows[:k] for rows in _shuffled_groups(labels, seed).values()]))


def stratified_sample(labels: Sequence[int], n: int, seed: int) -> np.ndarray:
    """Sorted row numbers of `n` examples, classes in proportion; all rows if there are fewer."""
    if n >= len(labels):
        return np.arange(len(labels))
    groups = _shuffled_groups(labels, seed)
    # The rank of a row in its class, as a share of the class: the n smallest shares hold every
    # class in proportion.
    shares = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in groups.values()])
    rows = np.concatenate(list(groups.values()))
    return np.sort(rows[np.argsort(shares, kind="stable")[:n]])


def assign_folds(strata: Sequence[int] | np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row (n,), from 0; every stratum is shared out evenly among them."""
    _, which = np.unique(np.asarray(strata), return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(which))
    order = shuffled[np.argsort(which[shuffled], kind="stable")]
    fold = np.empty(len(which), dtype=np.int64)
    # Dealt like cards, on from one stratum to the next, so that small strata do not all begin at
    # the first fold.
    fold[order] = np.arange(len(which)) % folds
    return fold


def deal_groups(
    strata: Sequence[int] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    shares: Sequence[float],
    seed: int,
) -> np.ndarray:
    """Part of each row (n,), from 0: no group in two, and about these shares of every stratum.

    No part is empty; there are at least as many groups as parts. Of several random orders in which
    the groups are dealt, the best counts. (scikit-learn's StratifiedGroupKFold knows equal parts
    only, and was further from the shares in 19 of 30 random cases; GroupShuffleSplit knows no
    strata.)
    """
    _, group_of_row, group_sizes = np.unique(groups, return_inverse=True, return_counts=True)
    _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    rows = np.argsort(group_of_row, kind="stable")
    members = np.split(stratum[rows], np.cumsum(group_sizes)[:-1])
    counts = [np.unique(own, return_counts=True) for own in members]
    wanted = np.outer(shares, sizes)
    # Large groups early, so that small ones even out what they leave; but not where parts differ:
    # a small part, filled last, would get the small groups.
    weights = group_sizes if len(set(shares)) == 1 else np.ones(len(counts))
    deals = []
    for draw in range(max(1, min(DEALS, MAX_DEALT // len(counts)))):
        order = np.argsort(-weights * np.random.default_rng((seed, draw)).random(len(counts)))
        part, dealt = _deal(counts, order, wanted)
        deals.append((float(((dealt - wanted) ** 2 / sizes).sum()), draw, part))
    return min(deals)[2][group_of_row]


def _deal(
    counts: Sequence[tuple[np.ndarray, np.ndarray]], order: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Part of each group, and the rows (parts, strata) that each part has, where `wanted` are due.

    A group has strata and its rows in each. It goes to the part that lacks its strata most.
    """
    part = np.zeros(len(counts), dtype=np.int64)
    dealt = np.zeros_like(wanted)
    sizes = wanted.sum(0)
    for number, group in enumerate(order):
        strata, rows = counts[group]
        lacking = ((wanted[:, strata] - dealt[:, strata]) * (rows / sizes[strata])).sum(1)
        if len(order) - number <= len(wanted):  # the last groups go to parts without any
            is_empty = dealt.sum(1) == 0
            if is_empty.sum() >= len(order) - number:
                lacking[~is_empty] = -np.inf
        part[group] = lacking.argmax()
        dealt[part[group], strata] += rows
    return part, dealt


def _shuffled_groups(labels: Sequence[int], seed: int) -> dict[int, np.ndarray]:
    """Class -> its row numbers in random order, which does not depend on the other classes."""
    values = np.asarray(labels)
    groups: dict[int, np.ndarray] = {}
    for label in map(int, np.unique(values)):
        rng = np.random.default_rng((seed, label))
        groups[label] = rng.permutation(np.flatnonzero(values == label))
    return groups
