"""The rule of `auto`: evidence in, a strategy and its reasons out; runs nothing.

The simplest plan that is not worse than another beyond noise wins: the one-standard-error rule (Breiman, Friedman,
Olshen and Stone 1984, "Classification and Regression Trees", section 3.4.3), on paired differences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIMPLEST = "head"
CANDIDATES = ("top_layers", "contrastive", "head_then_full")  # what may be worth more, the cheapest first
FOLDS = 3
# With fewer, a trial would learn from half of what the final plan has, and say little of it. Then it is the plan that
# goes on from the solved head: of digits from 1 and 2 labels a class it was above the head in 7 of 10 draws.
FEWEST_A_CLASS = 3
UNTRIED = "head_then_full"
HOPE = 2.0  # standard errors by which a candidate may turn out better than it looks


@dataclass(frozen=True)
class Trial:
    """How a plan did on rows that it did not learn from: `scores` (n,) of `rows` (n,), higher is better."""

    strategy: str
    rows: np.ndarray
    scores: np.ndarray
    seconds: float

    def __add__(self, other: "Trial") -> "Trial":
        """Both, of the same plan on different rows."""
        rows, scores = np.concatenate([self.rows, other.rows]), np.concatenate([self.scores, other.scores])
        return Trial(self.strategy, rows, scores, self.seconds + other.seconds)


@dataclass(frozen=True)
class Gain:
    """By how much a plan is better than another on the same rows: the mean, its standard error, the number of rows."""

    mean: float
    error: float
    n: int

    @property
    def is_hopeless(self) -> bool:
        """Whether more rows would hardly lift it above zero."""
        return self.mean + HOPE * self.error <= 0

    @property
    def is_beyond_noise(self) -> bool:
        """Whether it is above zero by more than its standard error."""
        return self.mean > self.error

    @property
    def in_words(self) -> str:
        """What it says of the plan."""
        if self.is_beyond_noise:
            return "better beyond noise"
        return "worse beyond noise" if self.mean < -self.error else "no difference beyond noise"


def find_gain(trial: Trial, other: Trial) -> Gain:
    """The paired difference of two trials over the rows that both were judged by.

    Its standard error is never below what one more row answered otherwise would make of it: a few rows on which both
    agree do not prove that they always will.
    """
    rows, mine, theirs = np.intersect1d(trial.rows, other.rows, return_indices=True)
    own, others = trial.scores[mine], other.scores[theirs]
    differences = own - others
    error = float(differences.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else np.inf
    one_row = (float(np.ptp(np.concatenate([own, others]))) or 1.0) / len(rows)  # all right or all wrong: 0 and 1
    return Gain(float(differences.mean()), max(error, one_row), len(rows))


def decide(simplest: Trial, others: Sequence[Trial]) -> tuple[str, tuple[str, ...]]:
    """The strategy to use, and why, in sentences with figures: each must be better than the best before it."""
    best, reasons = simplest, []
    for trial in others:
        gain, before = find_gain(trial, best), best.strategy
        best = trial if gain.is_beyond_noise else best
        reasons.append(
            f"trial of {trial.strategy}: {100 * gain.mean:+.1f} ± {100 * gain.error:.1f} points beside {before} on "
            f"{gain.n} held-out training rows, {gain.in_words}"
        )
    return best.strategy, (*reasons, f"so {best.strategy} is used")


def as_facts(simplest: Trial, others: Sequence[Trial]) -> list[dict[str, Any]]:
    """The trials for the record; the gain is in units of the score, over the simplest plan on the same rows."""
    facts: list[dict[str, Any]] = []
    for trial in (simplest, *others):
        gain = find_gain(trial, simplest)
        compared: Mapping[str, float] = {} if trial is simplest else {"gain": gain.mean, "standard_error": gain.error}
        score = float(trial.scores.mean())
        facts.append({"strategy": trial.strategy, "score": score, "n": gain.n, "seconds": trial.seconds, **compared})
    return facts
