"""Thresholds of several labels: the best F1 of each, kept in config.json by label name."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import f1_score
from transformers import AutoConfig, BertConfig

from hf_transfer.models.thresholds import choose_thresholds, keep_thresholds, read_thresholds


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_has_a_higher_f1(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = (draw.random((80, 3)) < [0.1, 0.5, 0.9]).astype(float)
    # Rounded: many are equal.
    probabilities = np.round(np.clip(0.3 * labels + 0.6 * draw.random((80, 3)), 0, 1), 2)
    chosen = choose_thresholds(labels, probabilities)
    for label, threshold in enumerate(chosen):
        found = f1_score(labels[:, label], probabilities[:, label] > threshold)
        others = [
            f1_score(labels[:, label], probabilities[:, label] > other, zero_division=0)
            for other in np.linspace(-0.005, 1, 202)
        ]
        assert found == pytest.approx(max(others))


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_chosen() -> None:
    labels = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]])
    probabilities = np.array([[0.9, 0.4, 0.9], [0.8, 0.2, 0.8], [0.3, 0.1, 0.6], [0.1, 0.1, 0.6]])
    assert choose_thresholds(labels, probabilities) == pytest.approx([0.5, 0.3, 0.7])


def test_a_label_that_no_row_has_keeps_a_half() -> None:
    assert choose_thresholds(np.zeros((4, 1)), np.full((4, 1), 0.7)).tolist() == [0.5]


def test_thresholds_are_read_as_they_were_kept_in_the_order_of_the_labels(tmp_path: Path) -> None:
    config = BertConfig(id2label={0: "sea", 1: "sky"}, label2id={"sea": 0, "sky": 1})
    assert read_thresholds(config) is None
    keep_thresholds(config, np.array([0.25, 0.75]))
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["label_thresholds"] == {"sea": 0.25, "sky": 0.75}
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert read_thresholds(loaded).tolist() == [0.25, 0.75]
    keep_thresholds(loaded, None)
    assert read_thresholds(loaded) is None
    loaded.save_pretrained(tmp_path)
    assert "label_thresholds" not in json.loads((tmp_path / "config.json").read_text())


def test_a_label_without_a_threshold_has_a_half() -> None:
    config = SimpleNamespace(
        id2label={0: "x", 1: "y"}, num_labels=2, label_thresholds={"y": 0.1, "z": 0.9}
    )
    assert read_thresholds(config).tolist() == [0.5, 0.1]
