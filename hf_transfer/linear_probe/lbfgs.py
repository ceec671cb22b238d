"""The minima of several smooth convex functions at once, by L-BFGS."""

from collections.abc import Callable

import torch

MOST_STEPS = 200
HISTORY = 8  # pairs that L-BFGS remembers

Vectors = torch.Tensor  # (problems, unknowns)


def minimise(
    gradient: Callable[[Vectors], Vectors],
    at: Vectors,
    precondition: Callable[[Vectors], Vectors],
    enough: Callable[[Vectors], torch.Tensor],
) -> Vectors:
    """The minima of several smooth convex functions, by L-BFGS in step with one another.

    A function is done when the model that L-BFGS has of it promises less than `enough` (problems, 1), which may depend
    on where it stands. Steps are judged by slopes alone: near a minimum, differences of values in 32 bits are noise.
    Source: Nocedal and Wright, Numerical Optimization, algorithm 7.4; the slope test is theirs too (3.7b).
    """
    slope = gradient(at)
    pairs: list[tuple[Vectors, Vectors, torch.Tensor]] = []
    for _ in range(MOST_STEPS):
        direction = -_times_inverse_hessian(slope, pairs, precondition)
        promised = -(slope * direction).sum(1, keepdim=True)
        going = promised > 2 * enough(at)
        if not going.any():
            break
        step, new_slope = _step(gradient, at, direction * going, promised * going)
        change = new_slope - slope
        bend = (step * change).sum(1, keepdim=True)
        # Of a function that is done, the pair is 0: it changes nothing in what follows.
        pairs = [
            *pairs[1 - HISTORY :],
            (step, change, torch.where(bend > 0, 1 / bend, torch.zeros(()))),
        ]
        at, slope = at + step, new_slope
    return at


def _step(
    gradient: Callable[[Vectors], Vectors], at: Vectors, direction: Vectors, promised: torch.Tensor
) -> tuple[Vectors, Vectors]:
    """Steps along the directions that do not overshoot, and the gradients behind them."""
    length = torch.ones_like(promised)
    for _ in range(20):
        step = direction * length
        slope = gradient(at + step)
        along = (slope * direction).sum(1, keepdim=True)
        over = along > 0.5 * promised
        if not over.any():
            break
        length = torch.where(
            over, length * (promised / (promised + along)), length
        )  # where a parabola has its minimum
    return step, slope


def _times_inverse_hessian(
    slope: Vectors,
    pairs: list[tuple[Vectors, Vectors, torch.Tensor]],
    precondition: Callable[[Vectors], Vectors],
) -> Vectors:
    """The two-loop recursion of L-BFGS."""
    vector, shares = slope.clone(), []
    for step, change, inverse in reversed(pairs):
        shares.append(inverse * (step * vector).sum(1, keepdim=True))
        vector -= shares[-1] * change
    vector = precondition(vector)
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        vector += step * (share - inverse * (change * vector).sum(1, keepdim=True))
    return vector
