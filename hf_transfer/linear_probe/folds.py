"""Stratified cross-validation folds; all views of a row are in one fold."""

from dataclasses import dataclass

import numpy as np

from hf_transfer.data.splits import assign_folds, deal_groups, strata_of_numbers, strata_of_sets
from hf_transfer.record import ProblemType

MAX_FOLDS = 5
MIN_ROWS_FOR_TENTHS = 20  # two rows a tenth: tenths of one row each would leave no folds


@dataclass(frozen=True)
class Folds:
    """The fold of each row, and which rows the cross-validated loss is computed on."""

    fold_of_row: np.ndarray  # (n,) from 0
    scored: np.ndarray  # (n,) bool; False for a row that is the only one of its stratum

    def of_views(self, views: int) -> "Folds":
        """The folds of all views, view after view of the same rows."""
        return Folds(np.tile(self.fold_of_row, views), np.tile(self.scored, views))


def stratified_folds(
    labels: np.ndarray, problem_type: ProblemType, seed: int, groups: np.ndarray | None = None
) -> Folds | None:
    """Folds with an even part of every stratum; None if fewer than half of the rows can be scored.

    There are MAX_FOLDS of them, fewer where no stratum has as many rows. A row alone in its stratum
    is held out by a head that never saw its class; its loss only grows with the confidence of that
    head and would favour strong penalties, so it is not scored. With `groups` (n,), each is in one
    fold, and what is said of rows is meant of groups.
    """
    _, stratum = np.unique(_strata(labels, problem_type), return_inverse=True)
    members = np.arange(len(stratum)) if groups is None else groups
    folds = min(MAX_FOLDS, int(_count_different(members, stratum).max()))
    if groups is None:
        fold_of_row = assign_folds(stratum, folds, seed)
    else:
        fold_of_row = deal_groups(stratum, groups, [1 / folds] * folds, seed)
    scored = _count_different(fold_of_row, stratum)[stratum] > 1
    return None if 2 * scored.sum() < len(stratum) else Folds(fold_of_row, scored)


def folds_of_groups(groups: np.ndarray, seed: int) -> np.ndarray | None:
    """Fold of each row (n,), from 0, a group in one fold; None for a single group."""
    names, group_of_row = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    return assign_folds(np.zeros(len(names)), min(MAX_FOLDS, len(names)), seed)[group_of_row]


def train_masks(n: int, folds: Folds | None) -> np.ndarray:
    """(problems, n) the training rows of each fit: all but one fold; in the last fit all rows."""
    all_rows = np.ones((1, n), dtype=bool)
    if folds is None:
        return all_rows
    numbers = np.arange(folds.fold_of_row.max() + 1)
    return np.concatenate([folds.fold_of_row != numbers[:, None], all_rows])


def _count_different(values: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """(strata,) the number of different values in each stratum."""
    _, which = np.unique(values, return_inverse=True)
    return np.bincount(np.unique(np.stack([stratum, which]), axis=1)[0])


def _strata(labels: np.ndarray, problem_type: ProblemType) -> np.ndarray:
    """(n,) class, set of labels or tenth of the values of each row."""
    if problem_type == "single_label_classification":
        return labels
    if problem_type == "multi_label_classification":
        return np.array(strata_of_sets(labels.tolist()))
    tenths = strata_of_numbers(labels.reshape(len(labels), -1)[:, 0].tolist())
    # Numbers, unlike classes, can be held out without strata.
    return np.array(tenths) if len(labels) >= MIN_ROWS_FOR_TENTHS else np.zeros(len(labels))
