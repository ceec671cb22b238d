"""Thresholds of several labels per row: the probability above which each label is predicted.

They are kept in config.json under a key of our own, by label name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

KEY = "label_thresholds"
PLAIN = 0.5


def choose_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(labels,) the threshold with the highest F1 of each label; of several, the nearest to 0.5.

    `labels` zeros and ones and `probabilities`, both (n, labels). It is in the middle of two
    probabilities, and 0.5 for a label that no row has. (Lipton et al. 2014, "Optimal Thresholding
    of Classifiers to Maximize F1 Measure", arXiv 1402.1892.)
    """
    chosen = np.full(labels.shape[1], PLAIN)
    for label, (truth, scores) in enumerate(zip(labels.T, probabilities.T, strict=True)):
        order = np.argsort(-scores, kind="stable")
        sorted_scores = np.append(scores[order].astype(np.float64), 0.0)
        is_border = sorted_scores[:-1] > sorted_scores[1:]  # equal ones stay together
        hits = np.cumsum(truth[order])
        f1 = 2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())
        middle = (sorted_scores[:-1] + sorted_scores[1:]) / 2
        # 0.5 itself stands for all thresholds between the two probabilities around it.
        plain = int((scores > PLAIN).sum())
        if plain:
            middle[plain - 1] = PLAIN
        best = np.flatnonzero(is_border & (f1 == f1[is_border].max(initial=0)))
        if truth.any() and len(best):
            chosen[label] = middle[best[np.abs(middle[best] - PLAIN).argmin()]]
    return chosen


def keep_thresholds(config: Any, thresholds: np.ndarray | None) -> None:
    """Write thresholds into a model config, in the order of its labels; None removes them."""
    if thresholds is not None:
        names = map(config.id2label.get, range(len(thresholds)))
        setattr(config, KEY, dict(zip(names, thresholds.tolist(), strict=True)))
    elif hasattr(config, KEY):
        delattr(config, KEY)


def read_thresholds(config: Any) -> np.ndarray | None:
    """(labels,) the thresholds of a model config, or None; labels without one have 0.5."""
    kept = getattr(config, KEY, None)
    if not isinstance(kept, Mapping):
        return None
    names = map(config.id2label.get, range(config.num_labels))
    return np.array([float(kept.get(name, PLAIN)) for name in names])
