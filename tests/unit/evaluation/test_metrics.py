from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from hf_transfer.errors import UserError
from hf_transfer.evaluation.baselines import LINEAR_MODELS
from hf_transfer.evaluation.metrics import (
    METRICS,
    SCORING,
    Score,
    find_metric,
    load_metric,
    require_metrics,
)
from hf_transfer.evaluation.per_class import FIELDS
from hf_transfer.evaluation.predict import Predictions
from hf_transfer.record import ProblemType
from hf_transfer.sharing.card import BASELINE_NAMES
from hf_transfer.sharing.plots import PLOTS

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 300)
PROBABILITIES = RNG.dirichlet(np.ones(5), 300)  # a fifth class that never occurs
ANSWERS = PROBABILITIES.argmax(-1)
SETS = np.hstack([RNG.integers(0, 2, (300, 4)), np.zeros((300, 1))])
CHANCES = np.hstack(
    [RNG.random((300, 4)), np.full((300, 1), 0.1)]
)  # a fifth label that never occurs
NUMBERS = RNG.normal(40, 10, 300)
ESTIMATES = NUMBERS.round(-1) + RNG.normal(0, 5, 300)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", sk.accuracy_score(LABELS, ANSWERS)),
        (
            "balanced_accuracy",
            np.mean(sk.recall_score(LABELS, ANSWERS, average=None, labels=range(4))),
        ),
        ("f1_macro", sk.f1_score(LABELS, ANSWERS, average="macro")),
        ("f1_weighted", sk.f1_score(LABELS, ANSWERS, average="weighted")),
        ("log_loss", sk.log_loss(LABELS, PROBABILITIES, labels=range(5))),
    ],
)
def test_scores_agree_with_scikit_learn(name: str, expected: float) -> None:
    score = METRICS["single_label_classification"][name].score
    assert score(LABELS, PROBABILITIES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1_micro", sk.f1_score(SETS, CHANCES > 0.5, average="micro")),
        ("f1_macro", np.mean(sk.f1_score(SETS, CHANCES > 0.5, average=None, zero_division=0)[:4])),
        ("exact_match", sk.accuracy_score(SETS, CHANCES > 0.5)),
        ("log_loss", sk.log_loss(SETS.ravel(), CHANCES.ravel())),
    ],
)
def test_scores_of_several_labels_agree_with_scikit_learn(name: str, expected: float) -> None:
    score = METRICS["multi_label_classification"][name].score
    assert score(SETS, CHANCES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rmse", sk.root_mean_squared_error(NUMBERS, ESTIMATES)),
        ("mae", sk.mean_absolute_error(NUMBERS, ESTIMATES)),
        ("r2", sk.r2_score(NUMBERS, ESTIMATES)),
        ("pearson", stats.pearsonr(NUMBERS, ESTIMATES).statistic),
        ("spearman", stats.spearmanr(NUMBERS, ESTIMATES).statistic),
    ],
)
def test_scores_of_numbers_agree_with_scikit_learn_and_scipy(name: str, expected: float) -> None:
    assert METRICS["regression"][name].score(NUMBERS, ESTIMATES) == pytest.approx(expected)


def test_scores_stay_finite_where_nothing_varies_or_nothing_occurs() -> None:
    same = np.full(5, 2.0)
    assert all(np.isfinite(score(same, same)) for score in _scores("regression"))
    nothing, never = np.zeros((5, 3)), np.full((5, 3), 0.1)
    assert all(
        np.isfinite(score(nothing, never)) for score in _scores("multi_label_classification")
    )


def _scores(problem_type: ProblemType) -> list[Score]:
    scores = [metric.score for metric in METRICS[problem_type].values()]
    assert len(scores) > 3
    return scores


def test_each_table_has_a_row_for_each_problem_type() -> None:
    tables = (METRICS, SCORING, FIELDS, LINEAR_MODELS, BASELINE_NAMES, PLOTS)
    for table in tables:
        assert set(table) == set(get_args(ProblemType))


def test_the_default_metrics_are_among_those_that_fit() -> None:
    for problem_type, scoring in SCORING.items():
        assert set(scoring.default_metrics) <= set(METRICS[problem_type])


@pytest.mark.parametrize("problem_type", get_args(ProblemType))
def test_each_metric_is_better_for_right_predictions_in_the_direction_that_it_names(
    problem_type: ProblemType,
) -> None:
    labels, worse = {
        "single_label_classification": (LABELS, PROBABILITIES),
        "multi_label_classification": (SETS, CHANCES),
        "regression": (NUMBERS, ESTIMATES),
    }[problem_type]
    right = np.eye(5)[LABELS] if problem_type == "single_label_classification" else labels
    for metric in METRICS[problem_type].values():
        gain = metric.score(labels, right) - metric.score(labels, worse)
        assert (gain > 0) == metric.higher_is_better, metric.name
        assert not (metric.is_share and metric.score(labels, right) != pytest.approx(1.0))
        assert metric.is_share or not metric.is_proportion


def test_metrics_that_depend_on_it_take_the_threshold_of_each_label() -> None:
    labels = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    outputs = np.array([[0.4, 0.6], [0.2, 0.9], [0.4, 0.8]])
    threshold = np.array([0.3, 0.7])
    for metric in METRICS["multi_label_classification"].values():
        value = metric.at(threshold).score(labels, outputs)
        assert metric.at(None) is metric
        if metric.name == "log_loss":
            assert value == metric.score(labels, outputs)
        else:
            assert value == 1.0 > metric.score(labels, outputs)


def test_logits_are_read_by_problem_type() -> None:
    logits = np.array([[2.0, -1.0], [0.5, 0.6]])
    several = Predictions(("a", "b"), logits, np.zeros((2, 2)), "multi_label_classification")
    assert several.outputs == pytest.approx(1 / (1 + np.exp(-logits)))
    assert several.predicted_labels.tolist() == [[True, False], [True, True]]
    tuned = replace(several, thresholds=np.array([0.7, 0.2]))
    assert tuned.predicted_labels.tolist() == [[True, True], [False, True]]
    number = Predictions(("a", "b"), logits[:, :1], np.zeros(2), "regression")
    assert number.predicted_labels.tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    ("names", "problem_type", "message", "hint"),
    [
        (["accuracy"], "regression", "'accuracy' does not fit regression", "rmse, mae, r2"),
        (
            ["rmse"],
            "multi_label_classification",
            "'rmse' does not fit multi_label",
            "f1_micro, f1_macro",
        ),
        (["log_loss", "rmsee"], "multi_label_classification", "'rmsee' does not fit", "f1_micro"),
        (["rmse"], None, "'rmse' does not fit single_label", "rmse is for regression"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_with_those_that_do(
    names: list[str], problem_type: ProblemType | None, message: str, hint: str
) -> None:
    with pytest.raises(UserError) as refusal:
        require_metrics(names, problem_type)
    assert message in refusal.value.message
    assert hint in refusal.value.hint


def test_before_the_labels_are_read_metrics_of_one_and_of_several_labels_are_taken() -> None:
    require_metrics(["accuracy", "exact_match", "log_loss"], None)
    metric = load_metric("exact_match", "multi_label_classification")
    assert metric is METRICS["multi_label_classification"]["exact_match"]


def test_a_metric_of_the_evaluate_library_has_its_name_as_title_and_is_no_share() -> None:
    metric = find_metric("share_right", "single_label_classification")
    assert (metric.title, metric.hub_id, metric.is_share) == ("share_right", "share_right", False)


def test_an_unknown_metric_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="unknown metric 'accurcy'") as refusal:
        load_metric("accurcy")
    assert "did you mean 'accuracy'" in refusal.value.hint
