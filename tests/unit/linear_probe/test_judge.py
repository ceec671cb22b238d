"""The held-out loss of a probe: lower for features that tell the labels, by the caller's loss."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, mean_squared_error

from hf_transfer.linear_probe.judge import held_out_loss
from hf_transfer.linear_probe.solve import ProbeData, solve_head
from hf_transfer.record import ProblemType

DRAW = np.random.default_rng(0)
NOISE = DRAW.normal(size=(60, 8)).astype(np.float32)
CLASSES = DRAW.permutation(np.arange(60) % 3)


def _binary_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return log_loss(labels.ravel(), probabilities.ravel())


CASES: list[tuple[ProblemType, np.ndarray, int, Any]] = [
    ("single_label_classification", CLASSES, 3, log_loss),
    ("multi_label_classification", np.eye(3, dtype=int)[CLASSES], 3, _binary_log_loss),
    ("regression", CLASSES + 0.5, 1, mean_squared_error),
]


@pytest.mark.parametrize(("problem_type", "labels", "outputs", "loss"), CASES)
def test_it_is_the_loss_of_the_out_of_fold_predictions(
    problem_type: ProblemType, labels: np.ndarray, outputs: int, loss: Any
) -> None:
    solved = solve_head(ProbeData(NOISE, labels, problem_type, outputs))
    expected = loss(labels, solved.out_of_fold.reshape(labels.shape[0], -1))
    found = held_out_loss(NOISE, labels, problem_type, outputs, loss)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("problem_type", "labels", "outputs", "loss"), CASES)
def test_features_that_tell_the_labels_have_a_lower_loss(
    problem_type: ProblemType, labels: np.ndarray, outputs: int, loss: Any
) -> None:
    telling = NOISE + 2 * np.eye(3, 8, dtype=np.float32)[CLASSES]
    found = [
        held_out_loss(features, labels, problem_type, outputs, loss)
        for features in (telling, NOISE)
    ]
    assert found[0] < 0.8 * found[1]


def test_a_regression_s_loss_gets_one_number_a_row() -> None:
    def loss(labels: np.ndarray, predictions: np.ndarray) -> float:
        assert labels.shape == predictions.shape == (60,)
        return 1.5

    assert held_out_loss(NOISE, CLASSES + 0.5, "regression", 1, loss) == 1.5


def test_where_nothing_can_be_held_out_features_make_no_difference() -> None:
    labels = np.arange(60)
    found = [
        held_out_loss(features, labels, "single_label_classification", 60, log_loss)
        for features in (NOISE, 1 + NOISE**2)
    ]
    assert found[0] == found[1] == pytest.approx(np.log(60), rel=1e-6)


def test_features_that_tell_the_group_alone_are_no_help_where_groups_stay_whole() -> None:
    groups = np.repeat(np.arange(20), 5)
    labels = np.random.default_rng(1).permutation(np.arange(20) % 2)[groups]
    features = np.random.default_rng(0).normal(size=(20, 60)).astype(np.float32)[groups]
    found = [
        held_out_loss(features, labels, "single_label_classification", 2, log_loss, of_rows)
        for of_rows in (None, groups)
    ]
    assert found[0] < 0.1
    assert found[1] > 0.6
