"""The rule of `auto`: evidence in, a strategy and its reasons out; runs nothing.

The simplest plan that is not worse than another beyond noise wins: the one-standard-error rule (Breiman, Friedman,
Olshen and Stone 1984, "Classification and Regression Trees", section 3.4.3), on paired differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIMPLEST = "head"
CANDIDATES = ("top_layers", "contrastive", "head_then_full")  # cheapest first
FOLDS = 3
HOPE = 2.0  # standard errors above its mean that a candidate may still reach; below the simplest then, it is given up


@dataclass(frozen=True)
class Trial:
    """How a plan did on rows that it did not learn from: `scores` (n,) of `rows` (n,), higher is better."""

    strategy: str
    rows: np.ndarray
    scores: np.ndarray
    seconds: float

    def and_also(self, other: "Trial") -> "Trial":
        """Both, of the same plan on different rows."""
        rows, scores = np.concatenate([self.rows, other.rows]), np.concatenate([self.scores, other.scores])
        return Trial(self.strategy, rows, scores, self.seconds + other.seconds)


@dataclass(frozen=True)
class Gain:
    """By how much a plan is better than another on the same rows: the mean, its standard error, the number of rows."""

    mean: float
    error: float
    n: int


def gain(trial: Trial, other: Trial) -> Gain:
    """The paired difference of two trials over the rows that both were judged on."""
    rows, mine, theirs = np.intersect1d(trial.rows, other.rows, return_indices=True)
    differences = trial.scores[mine] - other.scores[theirs]
    error = float(differences.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else np.inf
    return Gain(float(differences.mean()), error, len(rows))


def is_hopeless(trial: Trial, simplest: Trial) -> bool:
    """Whether more folds would not bring a candidate above the simplest plan."""
    found = gain(trial, simplest)
    return found.mean + HOPE * found.error <= 0


def decide(simplest: Trial, others: Sequence[Trial]) -> tuple[str, tuple[str, ...]]:
    """The strategy to use, and why, in sentences with figures: the best beyond noise, else the simplest."""
    gains = {trial.strategy: gain(trial, simplest) for trial in others}
    beyond = {name: found for name, found in gains.items() if found.mean > found.error}
    reasons = [f"{name} {_in_words(found)}" for name, found in gains.items()]
    if not beyond:
        return simplest.strategy, (*reasons, f"nothing was better than {simplest.strategy} beyond noise")
    best = max(beyond, key=lambda name: beyond[name].mean)
    return best, (*reasons, f"{best} is the best of those that were better beyond noise")


def _in_words(found: Gain) -> str:
    return f"gained {100 * found.mean:+.1f} ± {100 * found.error:.1f} points on head over {found.n} held-out rows"
