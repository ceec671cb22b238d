import numpy as np
import pytest
from sklearn import metrics as sk

from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import SCORES, load_metric

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 300)
PROBABILITIES = RNG.dirichlet(np.ones(5), 300)  # a fifth class that never occurs
ANSWERS = PROBABILITIES.argmax(-1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", sk.accuracy_score(LABELS, ANSWERS)),
        ("balanced_accuracy", np.mean(sk.recall_score(LABELS, ANSWERS, average=None, labels=range(4)))),
        ("f1_macro", sk.f1_score(LABELS, ANSWERS, average="macro")),
        ("f1_weighted", sk.f1_score(LABELS, ANSWERS, average="weighted")),
        ("log_loss", sk.log_loss(LABELS, PROBABILITIES, labels=range(5))),
    ],
)
def test_scores_agree_with_scikit_learn(name: str, expected: float) -> None:
    assert SCORES[name](LABELS, PROBABILITIES) == pytest.approx(expected, abs=1e-9)


def test_an_unknown_metric_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="unknown metric 'accurcy'") as refusal:
        load_metric("accurcy")
    assert "did you mean 'accuracy'" in refusal.value.hint
