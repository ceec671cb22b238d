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


def bootstrap_interval(
    score: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    probabilities: np.ndarray,
    level: float,
    seed: int = 0,
) -> Estimate:
    """A score with the percentile interval over 1,000 resamples of the examples (Efron 1979); the same each time."""
    rng, n = np.random.default_rng(seed), len(labels)
    draws = [score(labels[rows], probabilities[rows]) for rows in (rng.integers(0, n, n) for _ in range(RESAMPLES))]
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(score(labels, probabilities), float(low), float(high), level, n)
