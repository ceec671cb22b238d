"""Texts tokenized once: their tokens are kept in the store, under the tokenizer's content."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_transfer.config.cache import CacheConfig
from hf_transfer.data.checks import content_digest, input_columns
from hf_transfer.data.encode import Encoder
from hf_transfer.sealed import NotWrittenError
from hf_transfer.store.activations import (
    Activations,
    digest,
    estimate_bytes,
    open_activations,
    write_activations,
)
from hf_transfer.store.entries import resolve_cache_dir, room_for

log = logging.getLogger(__name__)

VERSION = 1  # of what is stored: raise it where the same texts give other tokens
OURS = ("id", "label")
STATE = ("truncation", "padding")  # parts of a tokenizer that each call sets


def with_stored_tokens(
    encoder: Encoder, tokenizer: Any, vocabulary: int | None, cache: CacheConfig
) -> Encoder:
    """The encoder of texts, whose `rows` reads tokens from the store, or keeps them there.

    The tokens were found to fit a model of this `vocabulary`. The encoder stays the same where the
    cache is off, and for tokenizers in Python, whose content nothing tells.
    """
    if not getattr(tokenizer, "is_fast", False) or cache.cache_inputs == "false":
        return encoder
    content = {**_content(tokenizer), "vocabulary": vocabulary}

    def rows(split: Dataset) -> Dataset:
        facts = {"tokens": VERSION, "tokenizer": content, "length": dict(encoder.limit)}
        texts = content_digest(split, input_columns(split))
        stored = _load_or_tokenize(digest({**facts, "rows": texts}), encoder, split, cache)
        return encoder.rows(split) if stored is None else _as_dataset(stored, split)

    return replace(encoder, rows=rows)


def _content(tokenizer: Any) -> dict[str, Any]:
    """All that decides which tokens a text has."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    settings = {name: repr(value) for name, value in tokenizer.init_kwargs.items()}
    settings.pop("name_or_path", None)
    return {
        "class": type(tokenizer).__name__,
        "backend": {name: value for name, value in backend.items() if name not in STATE},
        "settings": settings,
        "side": tokenizer.truncation_side,
        "tokenizers": version("tokenizers"),
    }


def _load_or_tokenize(
    key: str, encoder: Encoder, split: Dataset, cache: CacheConfig
) -> Activations | None:
    """The tokens of a split, from the store or kept there; None where it has no room."""
    folder = resolve_cache_dir(cache.cache_dir)
    stored = open_activations(folder, key)
    if stored is not None or not len(split):
        return stored
    tokenized = encoder.rows(split)
    names = [name for name in tokenized.column_names if name not in (*OURS, "length")]
    rows = tokenized.select_columns(names)
    sample = next(_batches(rows))
    reason = room_for(folder, estimate_bytes(sample, len(rows)), cache.cache_limit_gb)
    try:
        if not reason:
            return write_activations(folder, key, len(rows), _batches(rows), {"texts": len(rows)})
    except NotWrittenError as error:
        reason = str(error)
    level = logging.WARNING if cache.cache_inputs == "true" else logging.INFO
    log.log(level, "texts are tokenized in every run: %s", reason)
    return None


def _batches(rows: Dataset) -> Iterator[list[dict[str, np.ndarray]]]:
    for batch in rows.with_format("numpy").iter(1000):
        columns = zip(*batch.values(), strict=True)
        yield [dict(zip(batch, map(np.asarray, row), strict=True)) for row in columns]


def _as_dataset(stored: Activations, split: Dataset) -> Dataset:
    """The tokens as a dataset, memory-mapped, with the labels and ids of the split."""
    columns = {}
    for name, values in stored.values.items():
        ends = stored.offsets.get(name, np.arange(len(stored) + 1) * values.shape[-1])
        columns[name] = pa.LargeListArray.from_arrays(ends, values.reshape(-1))
    first = next(iter(columns.values()))
    columns["length"] = first.value_lengths()
    tokens = Dataset(pa.table(columns))
    for name in OURS:
        tokens = tokens.add_column(name, split[name][:], feature=split.features[name])
    return tokens
