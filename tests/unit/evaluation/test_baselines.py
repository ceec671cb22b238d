import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hf_transfer.config.data import DataConfig
from hf_transfer.data.sources import Data, load_data
from hf_transfer.evaluation.baselines import majority, raw_inputs
from hf_transfer.record import ProblemType
from hf_transfer.tasks import find_task

TEXTS = find_task("text-classification")


def _load(tmp_path: Path, labels: list[Any], problem_type: ProblemType | None = None) -> Data:
    texts = ["the red cat", "the blue dog", "a bird"]
    rows = [{"text": texts[n % 3], "label": labels[n % 3]} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return load_data(
        DataConfig(str(tmp_path / "rows.jsonl"), problem_type=problem_type), TEXTS, seed=0
    )


def test_without_looking_the_shares_of_the_classes_are_the_answer(tmp_path: Path) -> None:
    data = _load(tmp_path, ["x", "y", "y"])
    assert majority(TEXTS, data) == pytest.approx(np.tile([1 / 3, 2 / 3], (12, 1)), abs=0.02)


def test_without_looking_the_shares_of_the_labels_are_the_answer(tmp_path: Path) -> None:
    data = _load(tmp_path, [["x", "y"], ["y"], []])
    assert majority(TEXTS, data) == pytest.approx(np.tile([1 / 3, 2 / 3], (12, 1)), abs=0.02)


def test_without_looking_the_mean_is_the_answer(tmp_path: Path) -> None:
    data = _load(tmp_path, [1.0, 2.0, 6.0], "regression")
    assert majority(TEXTS, data) == pytest.approx(np.full(12, 3.0), abs=0.2)


def test_words_tell_labels_also_beside_one_that_always_applies(tmp_path: Path) -> None:
    data = _load(tmp_path, [["x", "always"], ["y", "always"], ["always"]])
    chances, truth = raw_inputs(TEXTS, data), np.asarray(data.test["label"][:])
    assert ((chances > 0.5) == truth).all()
    assert (chances[:, data.labels.index("always")] == 1).all()


def test_words_tell_numbers(tmp_path: Path) -> None:
    data = _load(tmp_path, [10.0, 20.0, 60.0], "regression")
    assert np.abs(raw_inputs(TEXTS, data) - np.asarray(data.test["label"][:])).max() < 5


def test_a_linear_model_is_fitted_on_some_rows_of_each_class_in_proportion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = load_data(DataConfig("builtin:digits"), "image-classification", seed=0)
    assert len(data.train) > 900
    fitted = []
    plain = LogisticRegression.fit

    def fit(model: LogisticRegression, features: Any, labels: np.ndarray) -> LogisticRegression:
        fitted.append(np.bincount(labels))
        return plain(model, features, labels)

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    assert raw_inputs(data.task, data, max_rows=100).shape == (500, 10)
    assert fitted[0].sum() == 100
    assert fitted[0].min() >= 8
