"""L-BFGS for several smooth convex functions at once."""

from collections.abc import Callable

import torch

MAX_ITERATIONS = 200
HISTORY_SIZE = 8  # curvature pairs, as `history_size` of torch.optim.LBFGS

Vectors = torch.Tensor  # (problems, parameters): points, directions or gradients
# Step s, change of the gradient y, and 1 / (s'y), as (problems, 1); 0 where converged.
CurvaturePair = tuple[Vectors, Vectors, torch.Tensor]


def minimise(
    gradient: Callable[[Vectors], Vectors],
    start: Vectors,
    precondition: Callable[[Vectors], Vectors],
    tolerance: Callable[[Vectors], torch.Tensor],
) -> Vectors:
    """The minima of several smooth convex functions, all of them updated in each iteration.

    A function has converged when the decrease that its quadratic model predicts is below its
    `tolerance` (problems, 1), which may depend on the current point. The line search compares
    slopes, never values: near a minimum, differences of float32 values are rounding.

    Source: Nocedal and Wright, Numerical Optimization, algorithm 7.4; the curvature condition on
    slopes is their (3.7b).
    """
    point = start
    slope = gradient(point)
    pairs: list[CurvaturePair] = []
    for _ in range(MAX_ITERATIONS):
        direction = -_times_inverse_hessian(slope, pairs, precondition)
        descent = -(slope * direction).sum(1, keepdim=True)
        # The model predicts half of `descent` for the full step.
        active = descent > 2 * tolerance(point)
        if not active.any():
            break
        step, new_slope = _line_search(gradient, point, direction * active, descent * active)
        change = new_slope - slope
        curvature = (step * change).sum(1, keepdim=True)
        # The pair of a converged function is 0 and leaves its direction as it is.
        inverse = torch.where(curvature > 0, 1 / curvature, torch.zeros(()))
        pairs = [*pairs[1 - HISTORY_SIZE :], (step, change, inverse)]
        point = point + step
        slope = new_slope
    return point


def _line_search(
    gradient: Callable[[Vectors], Vectors], point: Vectors, direction: Vectors, descent: Vectors
) -> tuple[Vectors, Vectors]:
    """Steps along the directions that do not overshoot, and the gradients where they end."""
    step_size = torch.ones_like(descent)
    for _ in range(20):
        step = direction * step_size
        slope = gradient(point + step)
        ascent = (slope * direction).sum(1, keepdim=True)
        overshot = ascent > 0.5 * descent
        if not overshot.any():
            break
        # To the minimum of the parabola with these slopes at its ends.
        step_size = torch.where(overshot, step_size * (descent / (descent + ascent)), step_size)
    return step, slope


def _times_inverse_hessian(
    slope: Vectors, pairs: list[CurvaturePair], precondition: Callable[[Vectors], Vectors]
) -> Vectors:
    """The two-loop recursion of L-BFGS, `precondition` being its initial inverse Hessian."""
    vector = slope.clone()
    alphas = []
    for step, change, inverse in reversed(pairs):
        alphas.append(inverse * (step * vector).sum(1, keepdim=True))
        vector -= alphas[-1] * change
    vector = precondition(vector)
    for (step, change, inverse), alpha in zip(pairs, reversed(alphas), strict=True):
        vector += step * (alpha - inverse * (change * vector).sum(1, keepdim=True))
    return vector
