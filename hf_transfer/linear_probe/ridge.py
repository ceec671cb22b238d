"""Ridge regression with a cross-validated penalty, by scikit-learn."""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import Ridge

from hf_transfer.linear_probe.folds import Folds
from hf_transfer.linear_probe.standardise import CONSTANT_TOLERANCE, column_scale


def solve_ridge(
    x: np.ndarray,
    targets: np.ndarray,
    with_bias: bool,
    folds: Folds | None,
    l2_path: Sequence[float],
    penalty: float,
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Weight, bias, L2 penalty and out-of-fold predictions on standardised features.

    Without folds the first penalty of the path is used, and the mean of the targets is predicted.
    """
    if folds is None:
        l2 = l2_path[0]
        predictions = np.tile(targets.mean(0), (len(x), 1))
    else:
        by_l2 = _predict_out_of_fold(x, targets, with_bias, folds.fold_of_row, l2_path)
        best = int(np.argmin(((by_l2 - targets) ** 2).sum((1, 2))))
        l2 = l2_path[best]
        predictions = by_l2[best]
    weight, bias = _fit_path(x, targets, with_bias, [l2 * penalty])
    return weight[0], bias[0], l2 * penalty, predictions


def _predict_out_of_fold(
    x: np.ndarray,
    targets: np.ndarray,
    with_bias: bool,
    fold_of_row: np.ndarray,
    l2_path: Sequence[float],
) -> np.ndarray:
    """(penalties, n, outputs) the prediction for each row by the fit without its fold."""
    predictions = np.empty((len(l2_path), *targets.shape))
    for fold in range(fold_of_row.max() + 1):
        held_out = fold_of_row == fold
        weight, bias = _fit_path(x[~held_out], targets[~held_out], with_bias, l2_path)
        predictions[:, held_out] = x[held_out] @ weight.transpose(0, 2, 1) + bias[:, None]
    return predictions


def _fit_path(
    x: np.ndarray, targets: np.ndarray, with_bias: bool, l2_path: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (penalties, outputs, columns) and biases (penalties, outputs)."""
    scale = column_scale(x, centred=with_bias)
    scale = np.where(scale > CONSTANT_TOLERANCE, scale, np.inf)
    # Ridge takes a penalty per target: with the targets repeated, one x'x serves all penalties. It
    # penalises the sum of squared errors, we half their mean. Its solver "svd" is 3 times slower.
    alpha = len(x) * np.repeat(l2_path, targets.shape[1])
    ridge = Ridge(alpha=alpha, fit_intercept=with_bias, solver="cholesky")
    ridge.fit(x / scale, np.tile(targets, len(l2_path)))
    shape = (len(l2_path), targets.shape[1])
    bias = np.broadcast_to(ridge.intercept_, alpha.shape).reshape(shape)
    return ridge.coef_.reshape(*shape, -1) / scale, bias
