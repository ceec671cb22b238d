"""A linear probe in closed form: regularised, cross-validated, deterministic, in about a second.

The penalised problem is convex and its features are fixed, so its minimum can be computed, and
there is no learning rate or schedule to tune. Classification is in `logistic.py`, regression in
`ridge.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_transfer.linear_probe.folds import Folds, stratified_folds, train_masks
from hf_transfer.linear_probe.logistic import build_problems, solve_logistic
from hf_transfer.linear_probe.ridge import solve_ridge
from hf_transfer.linear_probe.standardise import standardise
from hf_transfer.record import ProblemType

# L2 penalties of the mean loss, strong to weak, on features of unit scale. Classification stops
# before the weak end once the held-out loss rises.
L2_PATH = tuple(float(l2) for l2 in 10.0 ** np.arange(1.0, -6.1, -0.5))
# Where nothing can be held out: what cross-validation selects with two or three examples a class.
FIXED_L2 = 0.1


@dataclass(frozen=True)
class ProbeData:
    """The rows that a linear probe is fitted on.

    With several `views` (augmentations) of each row, the features of all rows of the first view
    come first, then those of the second, in the same order of rows.
    """

    features: np.ndarray  # (views * n, features)
    labels: np.ndarray  # (n,) class ids, (n, outputs) zeros and ones, or numbers to regress on
    problem_type: ProblemType
    outputs: int
    views: int = 1


@dataclass(frozen=True)
class ProbeOptions:
    """How a linear probe is fitted."""

    with_bias: bool = True
    class_weights: np.ndarray | None = None  # (outputs,) above 0, with a single label a row
    seed: int = 0  # of the folds
    penalty: float = 1.0  # factor of the L2 penalty that cross-validation selects
    l2_path: Sequence[float] = L2_PATH  # to select from, strong to weak
    fold_of_row: np.ndarray | None = None  # (n,) from 0, in place of stratified folds
    groups: np.ndarray | None = None  # (n,) of rows that stay in one fold


DEFAULT_OPTIONS = ProbeOptions()


@dataclass(frozen=True)
class SolvedHead:
    """A linear head: logits = features @ weight.T + bias, on features as they were given."""

    weight: np.ndarray  # (outputs, features) float32, to be copied into nn.Linear
    bias: np.ndarray | None  # (outputs,) float32
    l2: float  # l2 / 2 * |weight|^2 is added to the mean loss, on features of unit scale
    # (n, outputs) float32 probabilities, or numbers, by heads that were fitted without the row
    out_of_fold: np.ndarray
    cross_validated: bool  # whether l2 was selected by cross-validation


def solve_head(data: ProbeData, options: ProbeOptions = DEFAULT_OPTIONS) -> SolvedHead:
    """The linear head with the least mean loss plus L2 penalty, the latter cross-validated.

    Single label: multinomial logistic regression, with rows weighted by class. Multi-label: one
    logistic regression an output, with one penalty for all. Regression: ridge, with half the
    squared error as its loss. The penalty acts on features that are centred and of unit deviation
    among the training rows of a fit (without a bias: of unit mean square, not centred).

    The penalty is `options.penalty` times the one with the least held-out loss over five stratified
    folds, or fewer where no class has five examples. Rows that are alone in their class are not
    scored. All views of a row are in one fold. `out_of_fold` holds the predictions with the
    selected penalty, averaged over the views of a row. Where fewer than half of the rows can be
    scored (one example a class), the penalty is FIXED_L2 and `out_of_fold` repeats the frequencies
    of the labels (their mean).

    With a bias, a class without an example gets one that makes it never probable (with several
    labels a row, one that counts it as half an example); without one, it only becomes improbable.
    The same input gives the same bits. Raises ValueError for arrays that do not fit together.
    """
    features = np.asarray(data.features, dtype=np.float32)
    data = replace(data, features=features, labels=np.asarray(data.labels))
    _check_features(data)
    _check_labels(data)
    _check_options(data, options)
    if options.fold_of_row is None:
        folds = stratified_folds(data.labels, data.problem_type, options.seed, options.groups)
    else:
        folds = Folds(options.fold_of_row, np.ones(len(data.labels), dtype=bool))
    folds = folds.of_views(data.views) if folds else None
    x, centre, factor = standardise(features, options.with_bias)
    weight, bias, l2, held_out = _solve_standardised(x, data, options, folds)
    # The head reads features as they are: the standardisation goes into its weights.
    raw = weight * factor
    raw_bias = (bias - raw @ centre).astype(np.float32) if options.with_bias else None
    out_of_fold = held_out.reshape(data.views, -1, data.outputs).mean(0).astype(np.float32)
    return SolvedHead(raw.astype(np.float32), raw_bias, l2, out_of_fold, folds is not None)


def _solve_standardised(
    x: np.ndarray, data: ProbeData, options: ProbeOptions, folds: Folds | None
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Weight, bias, L2 penalty and out-of-fold predictions of all views."""
    l2_path = options.l2_path if folds else (FIXED_L2,)
    labels = np.concatenate([data.labels] * data.views)
    if data.problem_type == "regression":
        targets = labels.astype(np.float64).reshape(len(x), data.outputs)
        return solve_ridge(x, targets, options.with_bias, folds, l2_path, options.penalty)
    row_weights = np.ones(len(x))
    if options.class_weights is not None:
        row_weights = np.asarray(options.class_weights, dtype=np.float64)[labels]
    train_weights = train_masks(len(x), folds) * row_weights
    problems = build_problems(x, labels, data.outputs, options.with_bias, train_weights)
    return solve_logistic(problems, row_weights, folds, l2_path, options.penalty)


def _check_features(data: ProbeData) -> None:
    features = data.features
    if features.ndim != 2 or features.size == 0 or len(features) != data.views * len(data.labels):
        raise ValueError(
            f"features {features.shape}, labels {data.labels.shape}: "
            f"want ({data.views} * n, features) and n labels"
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"features of {(~finite).sum()} rows are not finite, the first is row {finite.argmin()}"
        )


def _check_labels(data: ProbeData) -> None:
    labels = data.labels
    outputs = data.outputs
    if data.problem_type == "single_label_classification":
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"labels {labels.shape} of {labels.dtype}: want (n,) integers")
        if not 0 <= labels.min() <= labels.max() < outputs:
            given = f"labels from {labels.min()} to {labels.max()}"
            raise ValueError(f"{given}: {outputs} outputs want 0 to {outputs - 1}")
    elif labels.size != len(labels) * outputs or not np.isfinite(labels).all():
        raise ValueError(
            f"labels {labels.shape}: {outputs} outputs want as many finite numbers a row"
        )
    elif data.problem_type == "multi_label_classification" and not (
        labels.ndim == 2 and np.isin(labels, (0, 1)).all()
    ):
        raise ValueError(f"labels {labels.shape}: want (n, {outputs}) zeros and ones")


def _check_options(data: ProbeData, options: ProbeOptions) -> None:
    weights = options.class_weights
    fits = data.problem_type == "single_label_classification"
    if weights is not None and not (fits and len(weights) == data.outputs and np.min(weights) > 0):
        raise ValueError(
            f"{len(weights)} class weights: want {data.outputs} above 0, and a single label a row"
        )
    fold_of_row = options.fold_of_row
    if fold_of_row is not None and fold_of_row.shape != (len(data.labels),):
        raise ValueError(f"fold_of_row {fold_of_row.shape}: want ({len(data.labels)},)")
