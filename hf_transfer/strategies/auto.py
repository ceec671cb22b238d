"""The rule of `auto`: evidence in, a strategy and its reasons out; runs nothing.

Few rows seldom tell which plan is best: so one stands first that seldom loses, and another takes its place only where
it is better by more than a standard error of their paired differences, in the manner of the one-standard-error rule
(Breiman, Friedman, Olshen and Stone 1984, "Classification and Regression Trees", section 3.4.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hf_transfer import record

# It goes on from the solved head at a small rate. Kumar et al. 2022 (arXiv 2202.10054) find it ahead of both its parts,
# and so do we on digits and docstrings, in the mean of the columns (README).
FIRST = "head_then_full"
CANDIDATES = ("head", "top_layers", "contrastive")  # what may take its place, the cheapest first
FOLDS = 3
# Held-out rows of one fold share what was learned from, and those of others most of it: the variance of the mean over
# k folds is (1 / k + held / learned) / (1 / k) times that of as many independent rows, here 2.5 times (Nadeau and
# Bengio 2003, "Inference for the Generalization Error", Machine Learning 52). Of fewer folds it is less: kept alike.
OVERLAP = 1 + FOLDS / (FOLDS - 1)
# With fewer, a trial would learn from half of what the final plan has, and say little of it.
FEWEST_A_CLASS = 3
# Below it a trial is given up: so bounds of 0.1 to 0.2 are usual in clinical trials. Two plans that agree on every row
# of the first fold are tried on a second one, and not on a third.
LEAST_CHANCE = 0.1


@dataclass(frozen=True)
class Trial:
    """How a plan did on rows that it did not learn from: `scores` (n,) of `rows` (n,), higher is better."""

    strategy: str
    rows: np.ndarray
    scores: np.ndarray
    seconds: float

    def __add__(self, other: "Trial") -> "Trial":
        """Both, of the same plan on different rows."""
        rows, scores = (
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.scores, other.scores]),
        )
        return Trial(self.strategy, rows, scores, self.seconds + other.seconds)


@dataclass(frozen=True)
class Gain:
    """By how much a plan is better than another on the same rows: the mean, its standard error, the number of rows."""

    mean: float
    error: float
    n: int

    def chance(self, share: float) -> float:
        """How likely it will be beyond noise once all rows are judged, where these are `share` of them (below 1).

        The predictive power of Spiegelhalter, Freedman and Blackburn 1986 ("Monitoring clinical trials: conditional or
        predictive power?", Controlled Clinical Trials 7), with a flat prior and the variance taken as known.
        """
        return NormalDist().cdf((self.mean / self.error - math.sqrt(share)) / math.sqrt(1 - share))

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

    Its standard error, corrected by OVERLAP, is never below what one more row answered otherwise would make of it: a
    few rows on which both agree do not prove that they always will. A score has the unit of an answer that is right in
    place of wrong; of numbers, of an error as large as the labels deviate.
    """
    rows, mine, theirs = np.intersect1d(trial.rows, other.rows, return_indices=True)
    differences = trial.scores[mine] - other.scores[theirs]
    error = (
        float(differences.std(ddof=1) * np.sqrt(OVERLAP / len(rows))) if len(rows) > 1 else np.inf
    )
    return Gain(float(differences.mean()), max(error, 1 / len(rows)), len(rows))


def find_best(trials: Sequence[Trial]) -> Trial:
    """The first trial, or what is better beyond noise than the best before it."""
    best, *others = trials
    for trial in others:
        best = trial if find_gain(trial, best).is_beyond_noise else best
    return best


def explain(trials: Sequence[Trial]) -> tuple[str, ...]:
    """Why the best of the trials is used, in sentences with figures."""
    reasons = []
    for number, trial in enumerate(trials[1:], start=1):
        best = find_best(trials[:number])
        gain = find_gain(trial, best)
        reasons.append(
            f"trial of {trial.strategy}: {100 * gain.mean:+.1f} ± {100 * gain.error:.1f} points beside {best.strategy} "
            f"on {gain.n} held-out training rows, {gain.in_words}"
        )
    return (*reasons, f"so {find_best(trials).strategy} is used")


def as_facts(trials: Sequence[Trial]) -> list[record.Trial]:
    """The trials for the record; gains are in units of the score, over the first trial's."""
    facts = []
    for trial in trials:
        gain = find_gain(trial, trials[0])
        compared = trial is not trials[0] and gain.n > 1
        facts.append(
            record.Trial(
                strategy=trial.strategy,
                score=float(trial.scores.mean()),
                n=len(trial.rows),
                seconds=trial.seconds,
                gain=gain.mean if compared else None,
                standard_error=gain.error if compared else None,
            )
        )
    return facts
