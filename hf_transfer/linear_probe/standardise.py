"""Features on a unit scale, on which one L2 penalty suits all columns."""

import numpy as np

# A column whose deviation is below this fraction of its size is constant, up to float32 rounding.
# So is one below this fraction of the others' deviation, as a dead unit of a LayerNorm gives: its
# weight would be so large that no layer below could be trained through it.
CONSTANT_TOLERANCE = 1e-6


def standardise(features: np.ndarray, with_bias: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features on a unit scale (float32), the centre subtracted from them, and their factor.

    Without a bias, columns are scaled to unit mean square and not centred. The factor of a
    constant column is 0, so that the column has no effect and its weight folds back to 0.
    """
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centre = centre if with_bias else np.zeros_like(centre)
    x = features - centre
    deviation = column_scale(x, centred=False)
    size = np.maximum(np.abs(centre), np.median(deviation))
    constant = deviation <= CONSTANT_TOLERANCE * size + np.finfo(np.float32).tiny
    factor = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation)).astype(np.float32)
    x *= factor
    return x, centre.astype(np.float64), factor.astype(np.float64)


def column_scale(x: np.ndarray, centred: bool) -> np.ndarray:
    """(columns,) standard deviation of each column if `centred`, else its root mean square."""
    mean_square = np.einsum("ij,ij->j", x, x, dtype=np.float64) / len(x)
    if not centred:
        return np.sqrt(mean_square)
    return np.sqrt(np.maximum(mean_square - x.mean(axis=0, dtype=np.float64) ** 2, 0.0))
