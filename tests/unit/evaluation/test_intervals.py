import numpy as np
import pytest

from hf_transfer.evaluation.intervals import bootstrap_interval, f1_interval, share_interval
from hf_transfer.evaluation.metrics import accuracy, f1_macro


def test_wilsons_interval_has_its_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263, 95 %.
    estimate = share_interval(81, 263, 0.95)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_all_right_is_not_certainty() -> None:
    assert share_interval(50, 50, 0.95).low < 0.94
    assert f1_interval(50, 50, 50, 0.95).low < 0.97


def test_no_examples_say_nothing() -> None:
    assert (share_interval(0, 0, 0.95).low, share_interval(0, 0, 0.95).high) == (0.0, 1.0)


def test_f1_of_a_class_is_that_of_its_counts() -> None:
    # 8 right, 2 missed, 4 false: F1 = 16 / 22.
    assert f1_interval(8, 12, 10, 0.95).value == pytest.approx(16 / 22)


def test_intervals_hold_the_true_value_as_often_as_they_say() -> None:
    rng, held, trials = np.random.default_rng(1), 0, 60
    for trial in range(trials):
        labels = rng.integers(0, 2, 150)
        right = rng.random(150) < 0.8
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
        estimate = bootstrap_interval(accuracy, labels, probabilities, 0.9, seed=trial)
        held += estimate.low <= 0.8 <= estimate.high
    assert 0.78 <= held / trials <= 1.0


def test_f1_over_many_classes_lies_well_inside_its_interval() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 100, 1000)
    answers = np.where(rng.random(1000) < 0.8, labels, rng.integers(0, 100, 1000))
    estimate = bootstrap_interval(f1_macro, labels, np.eye(100)[answers], 0.95)
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    assert 0.5 < below / above < 2


def test_the_interval_is_the_same_each_time() -> None:
    labels, probabilities = np.arange(40) % 2, np.random.default_rng(0).dirichlet([1, 1], 40)
    assert bootstrap_interval(accuracy, labels, probabilities, 0.95) == bootstrap_interval(
        accuracy, labels, probabilities, 0.95
    )
