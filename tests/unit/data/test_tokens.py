"""Texts tokenized once: a second time their tokens come from the store, and are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoConfig, AutoTokenizer

from hf_transfer.config.cache import CacheConfig
from hf_transfer.data.encode import Encoder, make_encoder
from hf_transfer.data.tokens import with_stored_tokens
from hf_transfer.store.entries import list_entries
from hf_transfer.tasks import find_task

TASK = find_task("text-classification")
COLUMNS = {"text": Value("string"), "label": ClassLabel(names=["a", "b"]), "id": Value("string")}


def _rows(texts: list[str], pairs: list[str] | None = None) -> Dataset:
    numbers = range(len(texts))
    rows: dict[str, Any] = {
        "text": texts,
        "label": [n % 2 for n in numbers],
        "id": [f"train/{n}" for n in numbers],
    }
    features = dict(COLUMNS)
    if pairs:
        rows["text_pair"] = pairs
        features["text_pair"] = Value("string")
    return Dataset.from_dict(rows, Features({name: features[name] for name in rows}))


@pytest.fixture
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture
def plain(tiny_bert: Path, tokenizer: Any) -> Encoder:
    return make_encoder(TASK, tokenizer, AutoConfig.from_pretrained(tiny_bert))


def _cached(plain: Encoder, tokenizer: Any, folder: Path, **flags: Any) -> Encoder:
    cache = CacheConfig(cache_dir=str(folder), **flags)
    return with_stored_tokens(plain, tokenizer, 100, cache)


TEXTS = ["the red bird", "a fish", "the red bird sat on a tree " * 3]


@pytest.mark.parametrize("pairs", [None, ["one", "two of them", "three"]])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1] * 3])  # of several lengths, of one
def test_stored_tokens_are_those_of_the_tokenizer(
    texts: list[str], pairs: list[str] | None, plain: Encoder, tokenizer: Any, tmp_path: Path
) -> None:
    rows = _rows(texts, pairs)
    expected = plain.rows(rows)
    for _ in range(2):
        stored = _cached(plain, tokenizer, tmp_path).rows(rows)
        assert stored.features["label"] == expected.features["label"]
        assert list(stored) == list(expected)
        batch = plain.collate(list(stored))
        for name, tensor in plain.collate(list(expected)).items():
            assert torch.equal(batch[name], tensor)
    assert len(list_entries(tmp_path)) == 1


def test_a_second_time_nothing_is_tokenized(
    plain: Encoder, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _rows(TEXTS)
    _cached(plain, tokenizer, tmp_path).rows(rows)
    called = []
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *args, **options: called.append(args))
    assert len(_cached(plain, tokenizer, tmp_path).rows(rows)) == 3
    assert not called


def test_another_length_or_another_word_has_an_entry_of_its_own(
    tiny_bert: Path, plain: Encoder, tokenizer: Any, tmp_path: Path
) -> None:
    _cached(plain, tokenizer, tmp_path).rows(_rows(TEXTS))
    shorter = make_encoder(TASK, tokenizer, AutoConfig.from_pretrained(tiny_bert), max_length=4)
    assert max(_cached(shorter, tokenizer, tmp_path).rows(_rows(TEXTS))["length"]) == 4
    other = AutoTokenizer.from_pretrained(tiny_bert)
    other.add_tokens(["redbird"])
    _cached(plain, other, tmp_path).rows(_rows(TEXTS))
    assert len(list_entries(tmp_path)) == 3


@pytest.mark.parametrize("flags", [{"cache_limit_gb": 1e-9}, {"cache_inputs": "false"}])
def test_without_room_or_cache_texts_are_tokenized_each_time(
    flags: dict[str, Any], plain: Encoder, tokenizer: Any, tmp_path: Path
) -> None:
    assert list(_cached(plain, tokenizer, tmp_path, **flags).rows(_rows(TEXTS))) == list(
        plain.rows(_rows(TEXTS))
    )
    assert not list_entries(tmp_path)
