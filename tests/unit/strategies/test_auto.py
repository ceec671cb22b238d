import math

import numpy as np
import pytest

from hf_transfer import record
from hf_transfer.strategies.auto import (
    CANDIDATES,
    DEFAULT_STRATEGY,
    FOLDS,
    MIN_EXAMPLES_PER_CLASS,
    MIN_PREDICTIVE_POWER,
    VARIANCE_INFLATION,
    Gain,
    TrialScores,
    paired_gain,
    select_best,
    selection_reasons,
    trial_facts,
)
from hf_transfer.strategies.phases import STRATEGIES


def _trial(strategy: str, scores: list[float], first: int = 0, seconds: float = 1.0) -> TrialScores:
    return TrialScores(strategy, np.arange(first, first + len(scores)), np.array(scores), seconds)


def _of_two(strategy: str, right: int, wrong: int) -> TrialScores:
    """A trial that is right on the first `right` rows beyond eight that all get right, and then wrong."""
    return _trial(strategy, [1.0] * (8 + right) + [0.0] * wrong)


def test_the_default_and_the_candidates_are_strategies_and_no_candidate_is_the_default() -> None:
    assert {DEFAULT_STRATEGY, *CANDIDATES} < set(STRATEGIES)
    assert DEFAULT_STRATEGY not in CANDIDATES


def test_each_fold_has_a_row_of_the_smallest_class_that_is_tried() -> None:
    assert MIN_EXAMPLES_PER_CLASS >= FOLDS


def test_the_gain_is_the_mean_paired_difference_with_its_standard_error() -> None:
    gain = paired_gain(_trial("full", [1, 1, 1, 0]), _trial("head", [1, 0, 0, 0]))
    # Differences 0, 1, 1, 0: mean 1/2, variance (4 x 1/4) / 3.
    assert gain == Gain(0.5, pytest.approx(math.sqrt(VARIANCE_INFLATION / 3) / 2), 4)


def test_the_standard_error_allows_for_folds_that_share_training_rows() -> None:
    assert (FOLDS, VARIANCE_INFLATION) == (3, 2.5)


def test_scores_are_paired_by_row_number_on_the_rows_of_both() -> None:
    some = TrialScores("full", np.array([7, 2, 5]), np.array([1.0, 0.0, 1.0]), 1.0)
    others = TrialScores("head", np.array([1, 2, 5, 7]), np.array([1.0, 1.0, 0.0, 1.0]), 1.0)
    gain = paired_gain(some, others)  # row 2: -1, row 5: +1, row 7: 0
    assert gain == Gain(0.0, pytest.approx(math.sqrt(VARIANCE_INFLATION / 3)), 3)
    assert paired_gain(others, some).mean == -gain.mean


def test_one_row_says_nothing_beyond_noise() -> None:
    gain = paired_gain(_trial("full", [1]), _trial("head", [0]))
    assert (gain.mean, gain.standard_error) == (1.0, math.inf)
    assert not gain.is_beyond_noise


@pytest.mark.parametrize(
    ("mean", "error", "words"),
    [
        (0.03, 0.02, "better beyond noise"),
        (0.02, 0.02, "no difference beyond noise"),
        (-0.02, 0.02, "no difference beyond noise"),
        (-0.03, 0.02, "worse beyond noise"),
    ],
)
def test_beyond_noise_is_one_standard_error(mean: float, error: float, words: str) -> None:
    gain = Gain(mean, error, 10)
    assert gain.verdict == words
    assert gain.is_beyond_noise == (words == "better beyond noise")


@pytest.mark.parametrize("seen", [100, 200])
@pytest.mark.parametrize("errors", [-1.0, 0.0, 0.5, 2.0])
def test_the_predictive_power_is_how_often_the_other_rows_make_it_a_gain(
    seen: int, errors: float
) -> None:
    rows, draw = 300, np.random.default_rng(0)
    gain = Gain(
        errors / np.sqrt(seen), 1 / np.sqrt(seen), seen
    )  # a row's difference has a deviation of 1
    truth = draw.normal(gain.mean, gain.standard_error, 200_000)  # what it may be, after these rows
    to_come = draw.normal(truth, 1 / np.sqrt(rows - seen))
    ended = (seen * gain.mean + (rows - seen) * to_come) / rows > 1 / np.sqrt(rows)
    assert gain.predictive_power(seen / rows) == pytest.approx(ended.mean(), abs=0.005)


def test_scores_of_a_plan_on_different_rows_add_up() -> None:
    both = _trial("full", [1, 0], seconds=2) + _trial("full", [0.5], first=2, seconds=3)
    assert both.rows.tolist() == [0, 1, 2]
    assert both.scores.tolist() == [1, 0, 0.5]
    assert both.seconds == 5


def test_the_default_is_not_replaced_within_noise() -> None:
    # One row of nine more: 11.1 points, and a standard error of VARIANCE_INFLATION ** 0.5 times as many.
    trials = [_of_two("head_then_full", 0, 1), _of_two("head", 1, 0)]
    assert select_best(trials) is trials[0]
    assert selection_reasons(trials) == (
        "trial of head: +11.1 ± 17.6 points compared with head_then_full on 9 held-out training rows, no difference beyond "
        "noise",
        "so head_then_full is used",
    )


def test_the_default_is_not_replaced_by_what_is_worse() -> None:
    trials = [_of_two("head_then_full", 4, 0), _of_two("head", 0, 4)]
    assert select_best(trials) is trials[0]
    assert selection_reasons(trials)[0].startswith(
        "trial of head: -33.3 ± 22.5 points compared with head_then_full"
    )


def test_the_default_is_replaced_by_what_is_better_beyond_noise() -> None:
    trials = [_of_two("head_then_full", 0, 4), _of_two("head", 4, 0)]
    assert select_best(trials) is trials[1]
    assert selection_reasons(trials) == (
        "trial of head: +33.3 ± 22.5 points compared with head_then_full on 12 held-out training rows, better beyond noise",
        "so head is used",
    )


def test_each_is_compared_with_the_best_before_it() -> None:
    trials = [_of_two("head_then_full", 0, 8), _of_two("head", 4, 4), _of_two("top_layers", 5, 3)]
    assert paired_gain(trials[2], trials[0]).is_beyond_noise
    assert (
        select_best(trials).strategy == "head"
    )  # top_layers is better than the first, but not than this
    reasons = selection_reasons(trials)
    assert "compared with head_then_full" in reasons[0]
    assert "compared with head on" in reasons[1]
    assert "no difference beyond noise" in reasons[1]


def test_after_a_few_rows_on_which_both_agree_a_trial_goes_on() -> None:
    gain = paired_gain(_trial("full", [1] * 27), _trial("head", [1] * 27))
    assert gain == Gain(0.0, pytest.approx(1 / 27), 27)
    assert gain.predictive_power(1 / 3) > MIN_PREDICTIVE_POWER > gain.predictive_power(2 / 3)


def test_what_did_not_win_is_not_compared_with() -> None:
    trials = [_of_two("head_then_full", 4, 4), _of_two("head", 0, 8), _of_two("top_layers", 4, 4)]
    assert select_best(trials) is trials[0]  # top_layers is better than the head, but not than this
    assert (
        "trial of top_layers: +0.0 ± 6.2 points compared with head_then_full"
        in selection_reasons(trials)[1]
    )


def test_the_last_may_win_after_another_has() -> None:
    first, head, top = (
        _of_two("head_then_full", 0, 8),
        _of_two("head", 4, 4),
        _of_two("top_layers", 8, 0),
    )
    assert select_best([first, head, top]) is top
    assert select_best([first, top, head]) is top


def test_a_trial_that_was_stopped_early_is_compared_on_its_own_rows() -> None:
    trials = [_trial("head_then_full", [0.0] * 4 + [1.0] * 4), _trial("head", [1.0, 1.0, 1.0, 0.0])]
    assert select_best(trials) is trials[1]
    assert (
        "+75.0 ± 39.5 points compared with head_then_full on 4 held-out training rows"
        in selection_reasons(trials)[0]
    )


def test_without_another_trial_the_default_is_used() -> None:
    assert selection_reasons([_of_two("head_then_full", 1, 1)]) == ("so head_then_full is used",)


def test_the_facts_hold_every_trial_compared_with_the_first() -> None:
    first, other = trial_facts(
        [_trial("full", [1, 0, 0, 0], seconds=2), _trial("head", [1, 1, 1, 0], seconds=9)]
    )
    assert first == record.Trial("full", 0.25, n=4, seconds=2)
    error = pytest.approx(math.sqrt(VARIANCE_INFLATION / 3) / 2)
    assert other == record.Trial("head", 0.75, n=4, seconds=9, gain=0.5, standard_error=error)


@pytest.mark.parametrize("rows", [2, 6])
def test_the_facts_of_a_trial_on_fewer_or_more_rows_say_of_how_many_they_are(rows: int) -> None:
    _, other = trial_facts([_trial("full", [1, 0, 0, 0]), _trial("head", [1] * rows)])
    assert (other.n, other.score, other.gain) == (rows, 1.0, 0.5 if rows == 2 else 0.75)


def test_of_a_gain_on_one_row_there_is_no_error_to_say() -> None:
    _, other = trial_facts([_trial("full", [1, 0, 0, 0]), _trial("head", [1])])
    assert other == record.Trial("head", 1.0, n=1, seconds=1.0)


def test_one_number_far_off_in_both_plans_hides_no_gain() -> None:
    first = [-40.0, *[0.5] * 299]
    gain = paired_gain(
        _trial("contrastive", [score + 0.08 for score in first]), _trial("head", first)
    )
    assert gain.is_beyond_noise
