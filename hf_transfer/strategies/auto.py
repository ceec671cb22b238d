"""The rule of `auto`: scores of trials in, a strategy and the reasons for it out; runs nothing.

Few rows seldom tell which plan is best. So there is a default that seldom loses, and another plan
replaces it only where it is better by more than a standard error of their paired differences, in
the manner of the one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984,
"Classification and Regression Trees", section 3.4.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from hf_transfer.record import Trial

# Full fine-tuning from a solved head, at a small learning rate. Kumar et al. 2022 (arXiv
# 2202.10054) find it ahead of both its parts, and so do we on digits and docstrings, in the mean
# of the columns (README).
DEFAULT_STRATEGY = "head_then_full"
CANDIDATES = ("head", "top_layers", "contrastive")  # that may replace it, the cheapest first
FOLDS = 3
# Held-out rows of one fold share their training rows, and those of different folds most of them:
# the variance of the mean over k folds is (1 / k + held / learned) / (1 / k) times that of as many
# independent rows, here 2.5 times (Nadeau and Bengio 2003, "Inference for the Generalization
# Error", Machine Learning 52). For fewer folds it is less; the same factor is used.
VARIANCE_INFLATION = 1 + FOLDS / (FOLDS - 1)
# With fewer, a trial would learn from half of what the final plan has, and tell little of it.
MIN_EXAMPLES_PER_CLASS = 3
# A trial with less is stopped early: bounds of 0.1 to 0.2 are usual in clinical trials. Two plans
# that agree on every row of the first fold are tried on a second one, and not on a third.
MIN_PREDICTIVE_POWER = 0.1


@dataclass(frozen=True)
class TrialScores:
    """Held-out scores of a plan: `scores` (n,) of the row numbers `rows` (n,), higher is better.

    A score has the unit of an answer that is right in place of wrong; for numbers, of an error as
    large as the standard deviation of the labels.
    """

    strategy: str
    rows: np.ndarray
    scores: np.ndarray
    seconds: float

    def __add__(self, other: "TrialScores") -> "TrialScores":
        """The scores of the same plan on the rows of both."""
        return TrialScores(
            self.strategy,
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.scores, other.scores]),
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Gain:
    """The mean difference of scores of two plans on the same `n` rows, and its standard error."""

    mean: float
    standard_error: float
    n: int

    def predictive_power(self, share: float) -> float:
        """The probability that the gain exceeds its standard error once all rows are scored.

        These rows are a `share` of all (below 1). The predictive power of Spiegelhalter, Freedman
        and Blackburn 1986 ("Monitoring clinical trials: conditional or predictive power?",
        Controlled Clinical Trials 7), with a flat prior and the variance taken as known.
        """
        z = self.mean / self.standard_error
        return NormalDist().cdf((z - math.sqrt(share)) / math.sqrt(1 - share))

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the gain is positive and exceeds its standard error."""
        return self.mean > self.standard_error

    @property
    def verdict(self) -> str:
        """The comparison in words."""
        if self.is_beyond_noise:
            return "better beyond noise"
        is_worse = self.mean < -self.standard_error
        return "worse beyond noise" if is_worse else "no difference beyond noise"


def paired_gain(trial: TrialScores, other: TrialScores) -> Gain:
    """The gain of a trial over another one, on the rows that both have scores of.

    Its standard error, corrected by VARIANCE_INFLATION, is never below 1 / n, the change that one
    row answered otherwise would make: a few rows on which both agree do not prove that they always
    will. It is infinite for one row.
    """
    rows, own, others = np.intersect1d(trial.rows, other.rows, return_indices=True)
    differences = trial.scores[own] - other.scores[others]
    n = len(rows)
    error = differences.std(ddof=1) * np.sqrt(VARIANCE_INFLATION / n) if n > 1 else np.inf
    return Gain(float(differences.mean()), max(float(error), 1 / n), n)


def select_best(trials: Sequence[TrialScores]) -> TrialScores:
    """The first trial, or the last that is better beyond noise than the best before it."""
    best, *others = trials
    for trial in others:
        best = trial if paired_gain(trial, best).is_beyond_noise else best
    return best


def selection_reasons(trials: Sequence[TrialScores]) -> tuple[str, ...]:
    """Why the best of the trials is used, in sentences with figures."""
    reasons = []
    for number, trial in enumerate(trials[1:], start=1):
        best = select_best(trials[:number])
        gain = paired_gain(trial, best)
        points = f"{100 * gain.mean:+.1f} ± {100 * gain.standard_error:.1f} points"
        reasons.append(
            f"trial of {trial.strategy}: {points} compared with {best.strategy} "
            f"on {gain.n} held-out training rows, {gain.verdict}"
        )
    return (*reasons, f"so {select_best(trials).strategy} is used")


def trial_facts(trials: Sequence[TrialScores]) -> tuple[Trial, ...]:
    """The trials for the record.

    `gain` is in units of the score, over the first trial on the same rows; one row has no standard
    error, and no gain is recorded.
    """
    facts = []
    for trial in trials:
        gain = paired_gain(trial, trials[0])
        is_compared = trial is not trials[0] and gain.n > 1
        facts.append(
            Trial(
                strategy=trial.strategy,
                score=float(trial.scores.mean()),
                n=len(trial.rows),
                seconds=trial.seconds,
                gain=gain.mean if is_compared else None,
                standard_error=gain.standard_error if is_compared else None,
            )
        )
    return tuple(facts)
