import math

import numpy as np
import pytest

from hf_transfer.strategies import STRATEGIES
from hf_transfer.strategies.auto import (
    CANDIDATES,
    FEWEST_A_CLASS,
    FOLDS,
    SIMPLEST,
    UNTRIED,
    Gain,
    Trial,
    as_facts,
    decide,
    find_gain,
)


def _trial(strategy: str, scores: list[float], first: int = 0, seconds: float = 1.0) -> Trial:
    return Trial(strategy, np.arange(first, first + len(scores)), np.array(scores), seconds)


def _of_two(strategy: str, right: int, wrong: int) -> Trial:
    """A trial that is right on the first `right` rows beyond eight that all get right, and then wrong."""
    return _trial(strategy, [1.0] * (8 + right) + [0.0] * wrong)


def test_what_auto_chooses_from_are_strategies_and_the_simplest_is_none_of_the_larger() -> None:
    assert {SIMPLEST, UNTRIED, *CANDIDATES} < set(STRATEGIES)
    assert SIMPLEST not in CANDIDATES


def test_each_fold_has_a_row_of_a_class_of_the_fewest_that_are_tried() -> None:
    assert FEWEST_A_CLASS >= FOLDS


def test_the_gain_is_the_mean_paired_difference_with_its_standard_error() -> None:
    gain = find_gain(_trial("full", [1, 1, 1, 0]), _trial("head", [1, 0, 0, 0]))
    # Differences 0, 1, 1, 0: mean 1/2, variance (4 x 1/4) / 3.
    assert gain == Gain(0.5, pytest.approx(math.sqrt(1 / 3) / 2), 4)


def test_rows_are_paired_by_number_and_only_those_that_both_were_judged_by() -> None:
    some = Trial("full", np.array([7, 2, 5]), np.array([1.0, 0.0, 1.0]), 1.0)
    others = Trial("head", np.array([1, 2, 5, 7]), np.array([1.0, 1.0, 0.0, 1.0]), 1.0)
    gain = find_gain(some, others)  # row 2: -1, row 5: +1, row 7: 0
    assert gain == Gain(0.0, pytest.approx(1 / math.sqrt(3)), 3)
    assert find_gain(others, some).mean == -gain.mean


def test_one_row_says_nothing_beyond_noise() -> None:
    gain = find_gain(_trial("full", [1]), _trial("head", [0]))
    assert (gain.mean, gain.error) == (1.0, math.inf)
    assert not gain.is_beyond_noise
    assert not gain.is_hopeless


@pytest.mark.parametrize(
    ("mean", "error", "hopeless", "words"),
    [
        (0.03, 0.02, False, "better beyond noise"),
        (0.02, 0.02, False, "no difference beyond noise"),
        (0.0, 0.0, True, "no difference beyond noise"),
        (-0.02, 0.02, False, "no difference beyond noise"),
        (-0.03, 0.02, False, "worse beyond noise"),
        (-0.05, 0.02, True, "worse beyond noise"),
    ],
)
def test_beyond_noise_is_one_standard_error_and_hopeless_two_below(
    mean: float, error: float, hopeless: bool, words: str
) -> None:
    gain = Gain(mean, error, 10)
    assert (gain.is_hopeless, gain.in_words) == (hopeless, words)
    assert gain.is_beyond_noise == (words == "better beyond noise")


def test_trials_of_a_plan_on_different_rows_are_one() -> None:
    both = _trial("full", [1, 0], seconds=2) + _trial("full", [0.5], first=2, seconds=3)
    assert both.rows.tolist() == [0, 1, 2]
    assert both.scores.tolist() == [1, 0, 0.5]
    assert both.seconds == 5


def test_the_simplest_wins_within_noise() -> None:
    # One row of nine more: 11.1 points, and a standard error of as many.
    strategy, reasons = decide(_of_two("head", 0, 1), [_of_two("full", 1, 0)])
    assert strategy == "head"
    assert reasons == (
        "trial of full: +11.1 ± 11.1 points beside head on 9 held-out training rows, no difference beyond noise",
        "so head is used",
    )


def test_the_simplest_wins_over_what_is_worse() -> None:
    strategy, reasons = decide(_of_two("head", 4, 0), [_of_two("full", 0, 4)])
    assert strategy == "head"
    assert reasons[0].startswith("trial of full: -33.3 ± 14.2 points beside head")


def test_a_larger_plan_wins_beyond_noise() -> None:
    strategy, reasons = decide(_of_two("head", 0, 4), [_of_two("full", 4, 0)])
    assert strategy == "full"
    assert reasons == (
        "trial of full: +33.3 ± 14.2 points beside head on 12 held-out training rows, better beyond noise",
        "so full is used",
    )


def test_each_is_compared_with_the_best_before_it() -> None:
    head, top, full = _of_two("head", 0, 8), _of_two("top_layers", 4, 4), _of_two("full", 5, 3)
    assert find_gain(full, head).is_beyond_noise
    strategy, reasons = decide(head, [top, full])
    assert strategy == "top_layers"  # full is better than the head, but not than this
    assert "beside head" in reasons[0]
    assert "beside top_layers" in reasons[1]
    assert "no difference beyond noise" in reasons[1]


def test_a_few_rows_on_which_both_agree_leave_hope() -> None:
    gain = find_gain(_trial("full", [1] * 27), _trial("head", [1] * 27))
    assert gain == Gain(0.0, pytest.approx(1 / 27), 27)
    assert not gain.is_hopeless


def test_what_did_not_win_is_not_compared_with() -> None:
    head, top, full = _of_two("head", 4, 4), _of_two("top_layers", 0, 8), _of_two("full", 4, 4)
    strategy, reasons = decide(head, [top, full])
    assert strategy == "head"  # full is better than the layers, but not than this
    assert "trial of full: +0.0 ± 6.2 points beside head" in reasons[1]


def test_the_largest_may_win_after_another_has() -> None:
    head, top, full = _of_two("head", 0, 8), _of_two("top_layers", 4, 4), _of_two("full", 8, 0)
    assert decide(head, [top, full])[0] == "full"
    assert decide(head, [full, top])[0] == "full"


def test_a_trial_that_ended_early_is_judged_by_its_own_rows() -> None:
    head = _trial("head", [0.0] * 4 + [1.0] * 4)
    strategy, reasons = decide(head, [_trial("full", [1.0, 1.0, 1.0, 0.0])])
    assert strategy == "full"
    assert "+75.0 ± 25.0 points beside head on 4 held-out training rows" in reasons[0]


def test_without_another_trial_the_simplest_is_used() -> None:
    assert decide(_of_two("head", 1, 1), []) == ("head", ("so head is used",))


def test_the_facts_hold_every_trial_beside_the_simplest() -> None:
    head, full = _trial("head", [1, 0, 0, 0], seconds=2), _trial("full", [1, 1, 1, 0], seconds=9)
    simplest, larger = as_facts(head, [full])
    assert simplest == {"strategy": "head", "score": 0.25, "n": 4, "seconds": 2}
    error = pytest.approx(math.sqrt(1 / 3) / 2)
    assert larger == {"strategy": "full", "score": 0.75, "n": 4, "seconds": 9, "gain": 0.5, "standard_error": error}


def test_the_facts_of_a_trial_that_ended_early_say_of_how_many_rows_they_are() -> None:
    _, larger = as_facts(_trial("head", [1, 0, 0, 0]), [_trial("full", [1, 1])])
    assert (larger["n"], larger["score"], larger["gain"]) == (2, 1.0, 0.5)
