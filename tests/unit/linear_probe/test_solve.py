"""The closed-form head against scikit-learn and least squares, and its other guarantees."""

from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from hf_transfer.linear_probe.folds import stratified_folds
from hf_transfer.linear_probe.solve import (
    FIXED_L2,
    L2_PATH,
    ProbeData,
    ProbeOptions,
    SolvedHead,
    solve_head,
)
from hf_transfer.record import ProblemType

SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"
TALL, WIDE = (240, 12), (60, 150)  # rows and columns


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads of scikit-learn on so little data wait for one another, minutes on a machine that is busy."""
    with threadpool_limits(1):
        yield


# --- data and references ---


def _blobs(
    shape: tuple[int, int], classes: int, apart: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Features (float32) and class numbers: clouds that overlap, on columns of different scale and offset."""
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.arange(shape[0]) % classes)
    centres = draw.normal(size=(classes, shape[1])) * apart / np.sqrt(shape[1] / 12)
    features = (draw.normal(size=shape) + centres[labels]) * draw.uniform(
        0.5, 5, shape[1]
    ) + draw.normal(size=shape[1])
    return features.astype(np.float32), labels


def _sets(shape: tuple[int, int], outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and sets of labels, each of another frequency."""
    draw = np.random.default_rng(1)
    features = draw.normal(size=shape)
    logits = features @ draw.normal(size=(shape[1], outputs)) * 2 / np.sqrt(shape[1]) - np.linspace(
        0, 2, outputs
    )
    return features.astype(np.float32), (draw.random(logits.shape) < expit(logits)).astype(np.int64)


def _numbers(shape: tuple[int, int], outputs: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Features and numbers that follow from them but for noise."""
    draw = np.random.default_rng(2)
    features = draw.normal(size=shape) * draw.uniform(0.5, 5, shape[1]) + 3
    numbers = features @ draw.normal(size=(shape[1], outputs)) / np.sqrt(shape[1]) + draw.normal(
        size=(shape[0], outputs)
    )
    return features.astype(np.float32), numbers


def _case(
    problem_type: ProblemType, shape: tuple[int, int] = TALL
) -> tuple[np.ndarray, np.ndarray, int]:
    """Features, labels and the number of outputs."""
    if problem_type == SINGLE:
        return *_blobs(shape, 4), 4
    return (*_sets(shape, 3), 3) if problem_type == MULTI else (*_numbers(shape), 1)


def _solve(
    features: np.ndarray,
    labels: np.ndarray,
    problem_type: ProblemType,
    outputs: int,
    views: int = 1,
    **options: Any,
) -> SolvedHead:
    data = ProbeData(features, labels, problem_type, outputs, views)
    return solve_head(data, ProbeOptions(**options))


def _standard(features: np.ndarray, like: np.ndarray, with_bias: bool = True) -> np.ndarray:
    """Features on the unit scale of `like`, in 64 bits."""
    centre = like.mean(0, dtype=np.float64) * with_bias
    scale = np.sqrt(((like - centre) ** 2).mean(0))
    return (features - centre) / np.where(scale > 0, scale, np.inf)


def _logits(solved: SolvedHead, features: np.ndarray) -> np.ndarray:
    return features @ solved.weight.astype(np.float64).T + (
        0 if solved.bias is None else solved.bias
    )


def _multinomial(
    x: np.ndarray,
    labels: np.ndarray,
    l2: float,
    with_bias: bool = True,
    class_weights: np.ndarray | None = None,
) -> LogisticRegression:
    """scikit-learn's; of two classes it has one vector of weights, which is twice ours."""
    weight = len(labels) if class_weights is None else class_weights[labels].sum()
    return LogisticRegression(
        C=(2 if len(np.unique(labels)) == 2 else 1) / (weight * l2),
        fit_intercept=with_bias,
        class_weight=None if class_weights is None else dict(enumerate(class_weights)),
        tol=1e-9,
        max_iter=10_000,
    ).fit(x, labels)


def _ridge(
    x: np.ndarray, numbers: np.ndarray, l2: float, unseen: np.ndarray, with_bias: bool = True
) -> np.ndarray:
    """Predictions for `unseen`, by least squares with a row for each penalised weight.

    Not scikit-learn's, which is what the package uses.
    """
    x_mean, mean = x.mean(0) * with_bias, numbers.mean(0) * with_bias
    penalty = np.sqrt(len(x) * l2) * np.eye(x.shape[1])
    zeros = np.zeros((x.shape[1], numbers.shape[1]))
    system = np.vstack([x - x_mean, penalty]), np.vstack([numbers - mean, zeros])
    return (unseen - x_mean) @ np.linalg.lstsq(*system, rcond=None)[0] + mean


# --- the solution ---


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("classes", [2, 5])
def test_single_labels_are_solved_as_scikit_learn_does(
    shape: tuple[int, int], classes: int, with_bias: bool
) -> None:
    features, labels = _blobs(shape, classes)
    solved = _solve(features, labels, SINGLE, classes, with_bias=with_bias)
    x = _standard(features, features, with_bias)
    expected = _multinomial(x, labels, solved.l2, with_bias)
    assert solved.weight.shape == (classes, shape[1])
    assert (solved.bias is not None) == with_bias
    np.testing.assert_allclose(
        softmax(_logits(solved, features), 1), expected.predict_proba(x), atol=2e-4
    )


def test_the_weights_are_those_of_scikit_learn() -> None:
    features, labels = _blobs(TALL, 5)
    solved = _solve(features, labels, SINGLE, 5)
    expected = _multinomial(_standard(features, features), labels, solved.l2)
    np.testing.assert_allclose(
        solved.weight * features.std(0), expected.coef_, atol=1e-3 * np.abs(expected.coef_).max()
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda features: features,
        lambda features: np.tile(features, (1, 20)),
        lambda features: features + 30,
    ],
    ids=["plain", "every column twenty times", "far from zero"],
)
def test_a_weak_penalty_on_separable_data_is_solved_to_its_minimum(
    change: Callable[[np.ndarray], np.ndarray], with_bias: bool
) -> None:
    features, labels = _blobs(TALL, 4, apart=4)
    features = change(features)
    solved = _solve(features, labels, SINGLE, 4, with_bias=with_bias, l2_path=[1e-6])
    x = _standard(features, features, with_bias)
    expected = _multinomial(x, labels, 1e-6, with_bias)
    scale = np.sqrt(((features - features.mean(0) * with_bias) ** 2).mean(0))
    ours, theirs = (
        0.5e-6 * (weight**2).sum() - log_softmax(logits, 1)[np.arange(len(x)), labels].mean()
        for weight, logits in [
            (solved.weight * scale, _logits(solved, features)),
            (expected.coef_, expected.decision_function(x)),
        ]
    )
    assert ours == pytest.approx(theirs, rel=1e-2)  # of 1e-5 nats


def test_weights_and_biases_of_classes_have_mean_zero() -> None:
    features, labels = _blobs(TALL, 4)
    features -= features.mean(0)
    solved = _solve(features, labels, SINGLE, 4)
    np.testing.assert_allclose(solved.weight.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(solved.bias.mean(), 0, atol=1e-6)


def test_a_hundred_classes_are_solved_as_scikit_learn_does() -> None:
    features, labels = _blobs((400, 20), 130, apart=2)
    solved = _solve(features, labels, SINGLE, 130)
    x = _standard(features, features)
    expected = _multinomial(x, labels, solved.l2).predict_proba(x)
    np.testing.assert_allclose(softmax(_logits(solved, features), 1), expected, atol=2e-4)


def test_class_weights_are_those_of_scikit_learn() -> None:
    features, labels = _blobs(TALL, 3)
    kept = np.flatnonzero(
        (labels != 2) | (np.arange(len(labels)) % 5 == 0)
    )  # the last class is rare
    features, labels = features[kept], labels[kept]
    weights = len(labels) / (3 * np.bincount(labels))
    solved = _solve(features, labels, SINGLE, 3, class_weights=weights)
    x = _standard(features, features)
    expected = _multinomial(x, labels, solved.l2, class_weights=weights).predict_proba(x)
    np.testing.assert_allclose(softmax(_logits(solved, features), 1), expected, atol=2e-4)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_several_labels_are_as_many_logistic_regressions(
    shape: tuple[int, int], with_bias: bool
) -> None:
    features, labels = _sets(shape, 3)
    solved = _solve(features, labels, MULTI, 3, with_bias=with_bias)
    x = _standard(features, features, with_bias)
    for own, logits in zip(labels.T, _logits(solved, features).T, strict=True):
        # `_multinomial` halves the penalty of two classes for their second vector, which is not there.
        expected = _multinomial(x, own, 2 * solved.l2, with_bias).predict_proba(x)[:, 1]
        np.testing.assert_allclose(expit(logits), expected, atol=2e-4)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_numbers_are_solved_as_by_least_squares(
    shape: tuple[int, int], with_bias: bool, outputs: int
) -> None:
    features, numbers = _numbers(shape, outputs)
    solved = _solve(features, numbers, REGRESSION, outputs, with_bias=with_bias)
    x = _standard(features, features, with_bias)
    expected = _ridge(x, numbers, solved.l2, x, with_bias)
    np.testing.assert_allclose(_logits(solved, features), expected, atol=1e-4)


# --- the features ---


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_scales_and_offsets_of_features_change_nothing(problem_type: ProblemType) -> None:
    features, labels, outputs = _case(problem_type)
    draw = np.random.default_rng(3)
    scales = 10.0 ** draw.uniform(-4, 4, features.shape[1])
    stretched = ((features + draw.uniform(-20, 20, features.shape[1])) * scales).astype(np.float32)
    plain, other = (_solve(each, labels, problem_type, outputs) for each in (features, stretched))
    assert other.l2 == plain.l2
    np.testing.assert_allclose(_logits(other, stretched), _logits(plain, features), atol=5e-3)
    np.testing.assert_allclose(other.out_of_fold, plain.out_of_fold, atol=5e-3)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_a_constant_column_gets_weight_zero(problem_type: ProblemType) -> None:
    features, labels, outputs = _case(problem_type)
    constant = np.tile(np.float32([0, 0.1, -3e5, 1e-32]), (len(features), 1))
    constant[::2, 1] = np.nextafter(np.float32(0.1), 1)  # constant but for rounding
    constant[::3, 3] = -2e-32  # a dead unit
    solved = _solve(np.hstack([constant, features]), labels, problem_type, outputs)
    assert not solved.weight[:, :4].any()
    plain = _solve(features, labels, problem_type, outputs)
    np.testing.assert_allclose(solved.weight[:, 4:], plain.weight, atol=1e-3)


def test_a_column_that_is_constant_without_a_fold_has_no_say_there() -> None:
    features, labels = _blobs(TALL, 4)
    plain = _solve(features, labels, SINGLE, 4)
    lone = np.zeros((len(features), 1), dtype=np.float32)
    lone[0] = 1
    solved = _solve(np.hstack([features, lone]), labels, SINGLE, 4)
    fold = stratified_folds(labels, SINGLE, 0).fold_of_row
    np.testing.assert_allclose(
        solved.out_of_fold[fold == fold[0]], plain.out_of_fold[fold == fold[0]], atol=5e-3
    )


# --- the labels ---


def test_a_class_without_an_example_is_never_probable() -> None:
    features, labels = _blobs(TALL, 4)
    solved = _solve(features, 3 * labels, SINGLE, 12)
    absent = np.arange(12) % 3 != 0
    assert solved.out_of_fold[:, absent].max() < 1e-6
    anywhere = np.random.default_rng(0).normal(size=(1000, features.shape[1])) * 1000
    assert softmax(_logits(solved, anywhere), 1)[:, absent].max() < 1e-6


def test_classes_without_an_example_change_nothing_for_the_others() -> None:
    features, labels = _blobs(TALL, 4)
    plain, solved = (
        _solve(features, labels, SINGLE, 4),
        _solve(features, 3 * labels, SINGLE, 12),
    )
    assert solved.l2 == plain.l2
    np.testing.assert_allclose(
        softmax(_logits(solved, features), 1)[:, ::3],
        softmax(_logits(plain, features), 1),
        atol=1e-4,
    )


def test_a_label_that_no_row_has_gets_half_an_example() -> None:
    features, labels = _sets(TALL, 3)
    labels[:, 1] = 0
    solved = _solve(features, labels, MULTI, 3)
    assert not solved.weight[1].any()
    np.testing.assert_allclose(solved.out_of_fold[:, 1], 0.5 / len(features), rtol=0.01)


def test_rows_of_one_class_are_all_of_that_class() -> None:
    features, labels = _blobs((40, 5), 2)
    solved = _solve(features, np.ones_like(labels), SINGLE, 3)
    assert softmax(_logits(solved, features), 1)[:, 1].min() > 0.999
    assert solved.out_of_fold[:, 1].min() > 0.999


def test_one_label_a_class_is_solved_with_the_fixed_penalty() -> None:
    features, labels = _blobs((6, 30), 6)
    solved = _solve(features, labels, SINGLE, 6)
    assert solved.l2 == FIXED_L2
    np.testing.assert_allclose(solved.out_of_fold, 1 / 6, atol=1e-6)
    x = _standard(features, features)
    expected = _multinomial(x, labels, FIXED_L2).predict_proba(x)
    np.testing.assert_allclose(softmax(_logits(solved, features), 1), expected, atol=2e-4)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_one_row_repeats_its_label(problem_type: ProblemType) -> None:
    labels = {
        SINGLE: np.array([1]),
        MULTI: np.array([[0, 1, 0]]),
        REGRESSION: np.array([[1.5, 2.5, 3.5]]),
    }[problem_type]
    solved = _solve(np.ones((1, 4), dtype=np.float32), labels, problem_type, 3)
    expected = np.eye(3)[labels] if problem_type == SINGLE else labels
    np.testing.assert_allclose(solved.out_of_fold, expected)
    assert not solved.weight.any()


def test_classes_with_one_member_leave_the_choice_to_the_others() -> None:
    features, labels = _blobs(TALL, 4, apart=2)
    labels[:6] = np.arange(
        4, 10
    )  # in the midst of the others: the surer those are, the larger the loss of these
    assert _solve(features, labels, SINGLE, 10).l2 < 1e-3


def test_a_class_with_one_member_is_improbable_where_it_was_not_seen() -> None:
    features, labels = _blobs(TALL, 4)
    labels[0] = 4
    solved = _solve(features, labels, SINGLE, 5)
    assert 0 < solved.out_of_fold[0, 4] < 0.02
    assert softmax(_logits(solved, features), 1)[0, 4] > solved.out_of_fold[0, 4]


def test_numbers_are_held_out_however_few_they_are() -> None:
    features, numbers = _numbers((9, 2))
    solved = _solve(features, numbers, REGRESSION, 1)
    assert len(np.unique(solved.out_of_fold)) == 9


# --- cross-validation ---


def _explicit_path(
    problem_type: ProblemType, features: np.ndarray, labels: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(penalties, n, outputs) answers out of fold: every fold and penalty separately."""
    outputs = int(labels.max()) + 1 if problem_type == SINGLE else labels.shape[1]
    found = np.empty((len(L2_PATH), len(features), outputs))
    for number in range(fold.max() + 1):
        out = fold == number
        seen, unseen = (_standard(features[rows], features[~out]) for rows in (~out, out))
        for answers, l2 in zip(found, L2_PATH, strict=True):
            if problem_type == SINGLE:
                answers[out] = _multinomial(seen, labels[~out], l2).predict_proba(unseen)
            elif problem_type == MULTI:
                heads = [_multinomial(seen, own, 2 * l2) for own in labels[~out].T]
                answers[out] = np.stack([head.predict_proba(unseen)[:, 1] for head in heads], 1)
            else:
                answers[out] = _ridge(seen, labels[~out], l2, unseen)
    return found


def _losses(problem_type: ProblemType, answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(penalties,) mean held-out loss."""
    if problem_type == SINGLE:
        return -np.log(answers[:, np.arange(len(labels)), labels]).mean(1)
    if problem_type == MULTI:
        return -np.log(np.where(labels == 1, answers, 1 - answers)).sum(2).mean(1)
    return ((answers - labels) ** 2).mean((1, 2))


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
@pytest.mark.parametrize("shape", [(100, 10), WIDE])
def test_penalty_and_held_out_answers_are_those_of_a_plain_loop_over_folds(
    problem_type: ProblemType, shape: tuple[int, int]
) -> None:
    features, labels, outputs = _case(problem_type, shape)
    folds = stratified_folds(labels, problem_type, 0)
    assert folds.scored.all()
    answers = _explicit_path(problem_type, features, labels, folds.fold_of_row)
    best = int(_losses(problem_type, answers, labels).argmin())
    assert 0 < best < len(L2_PATH) - 1
    solved = _solve(features, labels, problem_type, outputs)
    assert solved.l2 == L2_PATH[best]
    np.testing.assert_allclose(
        solved.out_of_fold, answers[best], atol=0.02 if problem_type != REGRESSION else 1e-4
    )


def _other(problem_type: ProblemType, label: np.ndarray, outputs: int) -> np.ndarray:
    return {SINGLE: (label + 1) % outputs, MULTI: 1 - label, REGRESSION: label + 100}[problem_type]


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_an_answer_out_of_fold_does_not_follow_the_row_s_own_label(
    problem_type: ProblemType,
) -> None:
    features, labels, outputs = _case(problem_type)
    # Given, since stratified ones follow the labels.
    fold = np.random.default_rng(0).permutation(len(labels)) % 5
    options = {"l2_path": [1e-2], "fold_of_row": fold}
    plain = _solve(features, labels, problem_type, outputs, **options).out_of_fold
    labels[7] = _other(problem_type, labels[7], outputs)
    poisoned = _solve(features, labels, problem_type, outputs, **options).out_of_fold
    own = fold == fold[7]
    np.testing.assert_allclose(poisoned[own], plain[own], atol=1e-6)
    assert np.abs(poisoned[~own] - plain[~own]).max() > 1e-3


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_answers_out_of_fold_do_not_follow_features_of_their_fold(
    problem_type: ProblemType,
) -> None:
    features, labels, outputs = _case(problem_type)
    plain = _solve(features, labels, problem_type, outputs, l2_path=[1e-2]).out_of_fold
    features[7] *= 30
    poisoned = _solve(features, labels, problem_type, outputs, l2_path=[1e-2]).out_of_fold
    fold = stratified_folds(labels, problem_type, 0).fold_of_row
    others = (fold == fold[7]) & (np.arange(len(labels)) != 7)
    np.testing.assert_allclose(poisoned[others], plain[others], atol=0.01)
    assert np.abs(poisoned[fold != fold[7]] - plain[fold != fold[7]]).max() > 0.05


def test_labels_learned_by_heart_are_not_known_out_of_fold() -> None:
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(80, 400)), draw.permutation(np.arange(80) % 2)
    solved = _solve(features, labels, SINGLE, 2)
    assert (_logits(solved, features).argmax(1) == labels).all()
    assert (solved.out_of_fold.argmax(1) == labels).mean() < 0.65


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_the_same_input_gives_the_same_bits(problem_type: ProblemType) -> None:
    features, labels, outputs = _case(problem_type, WIDE)
    first, again = (astuple(_solve(features, labels, problem_type, outputs)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


# --- views ---


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_views_that_are_equal_are_as_one(problem_type: ProblemType) -> None:
    features, labels, outputs = _case(problem_type)
    plain = _solve(features, labels, problem_type, outputs)
    solved = _solve(np.tile(features, (3, 1)), labels, problem_type, outputs, views=3)
    assert solved.l2 == plain.l2
    assert solved.out_of_fold.shape == plain.out_of_fold.shape
    np.testing.assert_allclose(solved.out_of_fold, plain.out_of_fold, atol=5e-3)
    np.testing.assert_allclose(_logits(solved, features), _logits(plain, features), atol=5e-3)


def test_no_head_has_seen_another_view_of_a_row_that_it_did_not_see() -> None:
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(80, 400)), draw.permutation(np.arange(80) % 2)
    views = np.concatenate([features + 0.1 * draw.normal(size=features.shape) for _ in range(3)])
    solved = _solve(views, labels, SINGLE, 2, views=3)
    assert (solved.out_of_fold.argmax(1) == labels).mean() < 0.65


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_the_answer_out_of_fold_is_the_mean_over_the_views(problem_type: ProblemType) -> None:
    features, labels, outputs = _case(problem_type)
    other = features + np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    views = np.concatenate([features, other])
    solved = _solve(views, labels, problem_type, outputs, views=2, l2_path=[1e-2])
    # The views as rows of their own, in the same folds: an answer for each view of a row.
    fold = stratified_folds(labels, problem_type, 0).fold_of_row
    twice = np.concatenate([labels, labels])
    options = {"l2_path": [1e-2], "fold_of_row": np.tile(fold, 2)}
    both = _solve(views, twice, problem_type, outputs, **options)
    expected = (both.out_of_fold[: len(labels)] + both.out_of_fold[len(labels) :]) / 2
    np.testing.assert_allclose(solved.out_of_fold, expected, atol=1e-6)


def test_views_weigh_their_rows_by_class_too() -> None:
    features, labels = _blobs(TALL, 3)
    weights = np.array([1.0, 2.0, 5.0])
    plain = _solve(features, labels, SINGLE, 3, class_weights=weights)
    solved = _solve(np.tile(features, (2, 1)), labels, SINGLE, 3, class_weights=weights, views=2)
    np.testing.assert_allclose(_logits(solved, features), _logits(plain, features), atol=5e-3)


# --- what does not fit ---

X, Y = np.ones((4, 3), dtype=np.float32), np.array([0, 1, 0, 1])
ONES, NAN = np.ones((4, 2)), np.array([[1, np.nan]] * 4)
Call = Callable[[], SolvedHead]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: _solve(X[0], Y, SINGLE, 2),
            r"features \(3,\), labels \(4,\): want \(1 \* n, features\)",
        ),
        (lambda: _solve(X[:0], Y[:0], SINGLE, 2), r"features \(0, 3\)"),
        (lambda: _solve(X[:, :0], Y, SINGLE, 2), r"features \(4, 0\)"),
        (lambda: _solve(X[:3], Y, SINGLE, 2), r"features \(3, 3\), labels \(4,\)"),
        (lambda: _solve(X, Y, SINGLE, 2, views=2), r"want \(2 \* n, features\)"),
        (
            lambda: _solve(X / [[1], [0], [1], [0]], Y, SINGLE, 2),
            "of 2 rows are not finite, the first is row 1",
        ),
        (
            lambda: _solve(X, Y[:, None], SINGLE, 2),
            r"labels \(4, 1\) of int64: want \(n,\) integers",
        ),
        (lambda: _solve(X, Y / 1, SINGLE, 2), "of float64"),
        (lambda: _solve(X, Y + 1, SINGLE, 2), "labels from 1 to 2: 2 outputs want 0 to 1"),
        (lambda: _solve(X, Y - 1, SINGLE, 2), "labels from -1 to 0"),
        (lambda: _solve(X, ONES, MULTI, 3), r"labels \(4, 2\): 3 outputs want"),
        (lambda: _solve(X, NAN, MULTI, 2), "finite numbers"),
        (lambda: _solve(X, ONES / 2, MULTI, 2), "zeros and ones"),
        (lambda: _solve(X, Y, MULTI, 1), r"labels \(4,\): want \(n, 1\) zeros and ones"),
        (lambda: _solve(X, ONES, REGRESSION, 1), r"labels \(4, 2\): 1 outputs want"),
        (lambda: _solve(X, NAN, REGRESSION, 2), "finite numbers"),
        (lambda: _solve(X, Y, SINGLE, 2, class_weights=np.ones(3)), "3 class weights: want 2"),
        (lambda: _solve(X, Y, SINGLE, 2, class_weights=np.array([1, 0])), "above 0"),
        (lambda: _solve(X, ONES, MULTI, 2, class_weights=np.ones(2)), "a single label a row"),
        (lambda: _solve(X, Y, REGRESSION, 1, class_weights=np.ones(1)), "a single label a row"),
        (lambda: _solve(X, Y, SINGLE, 2, fold_of_row=Y[:3]), r"fold_of_row \(3,\): want \(4,\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_does_not_fit_together_is_refused(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
