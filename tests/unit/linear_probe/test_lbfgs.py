"""Several functions are minimised at once."""

import numpy as np
import torch

from hf_transfer.linear_probe.lbfgs import minimise


def test_several_functions_are_minimised_at_once() -> None:
    draw = np.random.default_rng(0)
    roots = torch.from_numpy(draw.normal(size=(3, 6, 6)))
    hessians, minima = roots @ roots.mT + torch.eye(6), torch.from_numpy(draw.normal(size=(3, 6)))
    found = minimise(
        lambda at: ((at - minima)[:, None] @ hessians)[:, 0],
        torch.zeros_like(minima),
        lambda gradient: gradient,
        lambda at: torch.full((3, 1), 1e-16),
    )
    torch.testing.assert_close(found, minima, atol=1e-6, rtol=0)
