import numpy as np
import pytest

from hf_transfer.evaluation.per_class import describe
from hf_transfer.evaluation.predict import Predictions


def test_each_label_of_several_has_its_own_figures() -> None:
    truth = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    logits = np.array([[3.0, -3.0], [3.0, -3.0], [3.0, 3.0], [-3.0, -3.0]])
    told = describe(
        Predictions(tuple("abcd"), logits, truth, "multi_label_classification"), ("x", "y"), 0.95
    )
    assert set(told) == {"per_class"}
    first, second = told["per_class"]
    assert (first.n, first.precision.value, first.recall.value) == (3, 2 / 3, 2 / 3)
    assert (second.n, second.precision.value, second.recall.value) == (2, 1.0, 0.5)
    assert second.f1.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(("n", "kept"), [(3, 3), (2000, 500)])
def test_a_regression_keeps_pairs_of_truth_and_answer(n: int, kept: int) -> None:
    truth = np.arange(n, dtype=float)
    told = describe(
        Predictions(("id",) * n, truth[:, None] + 0.5, truth, "regression"), ("price",), 0.95
    )
    assert told["per_class"] == []
    assert len(told["points"]) == kept
    assert told["points"][-1] == [n - 1, n - 0.5]
