import numpy as np
import pytest

from hf_transfer.frozen.forward_pass import mean
from hf_transfer.frozen.split import UnsplittableError


@pytest.mark.parametrize("shape", [(3, 4), (4, 5, 5), (4, 4, 4), (4,)])
def test_the_width_remains_of_positions_and_of_maps(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    axes = {1: (), 2: (0,), 3: (1, 2)}[len(shape)]
    assert np.array_equal(mean(values), values.mean(axes))


def test_an_output_whose_width_is_not_clear_is_refused() -> None:
    with pytest.raises(UnsplittableError, match="which axis"):
        mean(np.zeros((2, 3, 4)))
