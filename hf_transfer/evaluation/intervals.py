"""Intervals: how far a measured value may be from the true one."""

from collections.abc import Callable

import numpy as np
from scipy.stats import norm

from hf_transfer.record import Estimate

RESAMPLES = 1000


def share_interval(successes: int, n: int, level: float) -> Estimate:
    """A share with Wilson's interval (Wilson 1927), which holds for small n and near 0 and 1; n = 0 says nothing."""
    if n == 0:
        return Estimate(0.0, 0.0, 1.0, level, 0)
    z, share = norm.ppf(0.5 + level / 2), successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, float(max(0.0, middle - half)), float(min(1.0, middle + half)), level, n)


def f1_interval(right: int, answered_and_present: int, level: float) -> Estimate:
    """F1 of one class, from its right answers and the sum of its answers and its examples.

    F1 = 2s / (1 + s) where s = right / (right + missed + false) is a share, so Wilson's interval of s carries over;
    unlike resampling it does not shrink to a point where all answers are right.
    """
    share = share_interval(right, answered_and_present - right, level)
    value, low, high = (2 * s / (1 + s) for s in (share.value, share.low, share.high))
    return Estimate(value, low, high, level, share.n)


def bootstrap_interval(
    score: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    probabilities: np.ndarray,
    level: float,
    seed: int = 0,
) -> Estimate:
    """A score with the bias-corrected percentile interval over 1,000 resamples of the examples (Efron 1981).

    The correction matters for F1 over many classes, which resampling alone puts too low. The same each time.
    """
    rng, n, value = np.random.default_rng(seed), len(labels), score(labels, probabilities)
    draws = np.array(
        [
            score(labels[r], probabilities[r])
            for r in (rng.integers(0, n, n) for _ in range(RESAMPLES))
        ]
    )
    below = np.mean(draws < value) + np.mean(draws == value) / 2
    bias = norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    z = norm.ppf(0.5 + level / 2)
    low, high = np.quantile(draws, norm.cdf([2 * bias - z, 2 * bias + z]))
    return Estimate(value, float(low), float(high), level, n)
