"""Which rows are held out together, and which of them are scored."""

import numpy as np
import pytest

from hf_transfer.linear_probe.folds import stratified_folds


@pytest.mark.parametrize(
    ("counts", "scored"), [([9, 1, 5, 1], 14), ([2, 1, 1], 2), ([1, 1, 1, 2], 0), ([1], 0)]
)
def test_a_row_alone_in_its_class_is_not_scored(counts: list[int], scored: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    folds = stratified_folds(labels, "single_label_classification", 0)
    assert (0 if folds is None else folds.scored.sum()) == scored


@pytest.mark.parametrize(
    ("counts", "folds"), [([50, 50], 5), ([7, 3, 2], 5), ([3, 3], 3), ([2, 2, 2], 2)]
)
def test_every_fold_has_an_even_part_of_every_class(counts: list[int], folds: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = stratified_folds(labels, "single_label_classification", 0)
    assert found.scored.all()
    assert set(found.fold_of_row) == set(range(folds))
    for label, count in enumerate(counts):
        parts = np.bincount(found.fold_of_row[labels == label], minlength=folds)
        assert parts.max() - parts.min() <= 1
        assert parts.max() == -(-count // folds)


def test_a_group_is_in_one_fold_and_every_fold_has_about_its_part_of_every_class() -> None:
    draw = np.random.default_rng(0)
    groups = draw.integers(0, 40, 400)
    labels = draw.integers(0, 2, 400)
    found = stratified_folds(labels, "single_label_classification", 0, groups)
    assert found.scored.all()
    assert all(len(set(found.fold_of_row[groups == group])) == 1 for group in range(40))
    parts = np.stack([np.bincount(found.fold_of_row[labels == label]) for label in (0, 1)])
    assert parts.shape == (2, 5)
    assert np.ptp(parts, axis=1).max() <= 10


def test_a_class_of_one_group_is_not_scored() -> None:
    labels = np.repeat([0, 1, 2], [8, 8, 4])
    groups = np.repeat(np.arange(5), 4)
    found = stratified_folds(labels, "single_label_classification", 0, groups)
    assert found.scored.tolist() == [True] * 16 + [False] * 4
    assert stratified_folds(labels, "single_label_classification", 0, labels) is None
