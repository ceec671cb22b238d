import numpy as np
import pytest

from hf_transfer.data.builtin import load_builtin
from hf_transfer.errors import UserError


def test_digits_are_the_1797_scans_in_two_disjoint_splits() -> None:
    rows, _ = load_builtin("digits")
    assert {name: len(split) for name, split in rows.items()} == {"train": 1297, "test": 500}
    assert rows["train"].features["label"].names == [str(digit) for digit in range(10)]
    assert rows["train"][0]["image"].size == (8, 8)


def test_docstrings_are_balanced_real_texts_of_many_modules() -> None:
    rows, _ = load_builtin("docstrings")
    names = rows["train"].features["label"].names
    counts = np.bincount(rows["train"]["label"][:] + rows["test"]["label"][:])
    assert len(names) == 23
    assert counts.min() >= 50
    assert counts.max() <= 140
    assert not set(rows["train"]["text"][:]) & set(rows["test"]["text"][:])


def test_messages_are_balanced_texts_of_35_languages() -> None:
    rows, _ = load_builtin("languages")
    texts, labels = (
        rows["train"]["text"][:] + rows["test"]["text"][:],
        rows["train"]["label"][:] + rows["test"]["label"][:],
    )
    assert len(set(texts)) == len(texts)
    assert set(np.bincount(labels).tolist()) <= set(range(70, 101))
    assert len(rows["train"].features["label"].names) == 35
    assert min(len(text.split()) for text in texts) == 6


def test_messages_without_django_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Django, which is not installed"):
        load_builtin("languages")
