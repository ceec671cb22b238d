"""How well a linear probe on fixed features predicts rows that it was not fitted on."""

from collections.abc import Callable

import numpy as np

from hf_transfer.linear_probe.solve import ProbeData, ProbeOptions, solve_head
from hf_transfer.record import ProblemType


def held_out_loss(
    features: np.ndarray,
    labels: np.ndarray,
    problem_type: ProblemType,
    outputs: int,
    loss: Callable[[np.ndarray, np.ndarray], float],
    groups: np.ndarray | None = None,
) -> float:
    """The mean loss of a cross-validated linear probe on held-out rows.

    `features` (n, features) and `labels` as in `ProbeData`, `groups` as in `ProbeOptions`. `loss`
    takes the labels and the out-of-fold predictions: probabilities (n, outputs), or for a
    regression the numbers (n,). Where nothing can be held out, these are the frequencies of the
    labels (their mean), whatever the features are. Raises ValueError for arrays that do not fit
    together.
    """
    data = ProbeData(features, labels, problem_type, outputs)
    predictions = solve_head(data, ProbeOptions(groups=groups)).out_of_fold
    return loss(labels, predictions[:, 0] if problem_type == "regression" else predictions)
