"""Ridge regression with a cross-validated penalty: one eigendecomposition serves all penalties."""

from collections.abc import Sequence

import numpy as np

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
    centre = x.mean(0, dtype=np.float64) * with_bias
    mean = targets.mean(0) * with_bias
    unit = (x - centre) / scale
    wide = unit.shape[1] > len(unit)
    values, vectors = np.linalg.eigh((unit @ unit.T if wide else unit.T @ unit) / len(unit))
    # (x'x + s)^-1 x'y = x'(xx' + s)^-1 y: the smaller of the two matrices is decomposed.
    right = vectors.T @ (targets - mean if wide else unit.T @ (targets - mean)) / len(unit)
    eigenvalues = np.maximum(values, 0.0)[:, None]
    solutions = [vectors @ (right / (eigenvalues + l2)) for l2 in l2_path]
    weight = np.stack([(unit.T @ each if wide else each).T for each in solutions]) / scale
    return weight, mean - weight @ centre
