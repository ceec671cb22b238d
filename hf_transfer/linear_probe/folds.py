"""Stratified cross-validation folds; all views of a row are in one fold."""

from dataclasses import dataclass

import numpy as np

from hf_transfer.data.splits import assign_folds, strata_of_numbers, strata_of_sets
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


def stratified_folds(labels: np.ndarray, problem_type: ProblemType, seed: int) -> Folds | None:
    """Folds with an even part of every stratum; None if fewer than half of the rows can be scored.

    There are MAX_FOLDS of them, fewer where no stratum has as many rows. A row alone in its stratum
    is held out by a head that never saw its class; its loss only grows with the confidence of that
    head and would favour strong penalties, so it is not scored.
    """
    strata = _strata(labels, problem_type)
    _, stratum_of_row, counts = np.unique(strata, return_inverse=True, return_counts=True)
    scored = counts[stratum_of_row] > 1
    if 2 * scored.sum() < len(strata):
        return None
    return Folds(assign_folds(stratum_of_row, min(MAX_FOLDS, int(counts.max())), seed), scored)


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


def _strata(labels: np.ndarray, problem_type: ProblemType) -> np.ndarray:
    """(n,) class, set of labels or tenth of the values of each row."""
    if problem_type == "single_label_classification":
        return labels
    if problem_type == "multi_label_classification":
        return np.array(strata_of_sets(labels.tolist()))
    tenths = strata_of_numbers(labels.reshape(len(labels), -1)[:, 0].tolist())
    # Numbers, unlike classes, can be held out without strata.
    return np.array(tenths) if len(labels) >= MIN_ROWS_FOR_TENTHS else np.zeros(len(labels))
