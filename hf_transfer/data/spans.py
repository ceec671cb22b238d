"""Texts with marked spans -> words with tags: B- for the first word of a span, I- for others."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, List, Value

from hf_transfer.config.data import DataConfig
from hf_transfer.data.columns import TAG_COLUMNS
from hf_transfer.data.multi_label import is_list
from hf_transfer.data.tag_scheme import OUTSIDE
from hf_transfer.data.token_labels import WORD
from hf_transfer.errors import UserError

KEYS = ("start", "end", "label")

Span = tuple[int, int, str]


def read_spans(splits: Mapping[str, Dataset], config: DataConfig) -> dict[str, Dataset]:
    """The splits with lists of words and tags in place of texts and lists of spans of characters.

    A span is {"start", "end", "label"}, `end` being that of the character behind it. Splits without
    any stay as they are. Raises UserError for spans outside their text, without a word, or that
    overlap.
    """
    train = splits["train"]
    column = _find_spans(train, config.label_column)
    if column is None:
        return dict(splits)
    texts = [name for name, feature in train.features.items() if _is_text(feature)]
    usual = (config.text_column, "text", *texts)
    text = next((name for name in usual if name in texts), None)
    if text is None:
        raise UserError(
            f"the column {column!r} holds spans, and no column the texts",
            f"give --text_column; columns: {', '.join(train.column_names)}",
        )
    return {
        split: _tag(rows, split, text, column) if column in rows.features else rows
        for split, rows in splits.items()
    }


def with_tags(text: str, spans: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The words of a text and their tags. A word that a span begins or ends in is cut there.

    Raises ValueError, with the reason, for spans outside the text, without a word, or that overlap.
    """
    marked = sorted((span["start"], span["end"], str(span["label"])) for span in spans)
    for start, end, label in marked:
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise ValueError(f"the span {start} to {end} ({label}) holds no word")
    for (_, end, _), (start, _, label) in itertools.pairwise(marked):
        if start < end:
            raise ValueError(f"the span that begins at {start} ({label}) overlaps another")
    words: list[str] = []
    tags: list[str] = []
    place = 0
    for start, end, label in [*marked, (len(text), len(text), "")]:
        outside = WORD.findall(text[place:start])
        inside = WORD.findall(text[start:end])
        words += outside + inside
        tags += [OUTSIDE] * len(outside)
        tags += [f"{'I' if number else 'B'}-{label}" for number in range(len(inside))]
        place = end
    return words, tags


def _find_spans(train: Dataset, named: str | None) -> str | None:
    columns = (named,) if named else TAG_COLUMNS
    features = train.features
    return next((name for name in columns if name in features and _has_spans(features[name])), None)


def _has_spans(feature: Any) -> bool:
    if not is_list(feature) or not isinstance(feature.feature, dict):
        return False
    return set(KEYS) <= set(feature.feature)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _tag(rows: Dataset, split: str, text: str, column: str) -> Dataset:
    tokens = []
    tags = []
    pairs: Iterable[tuple[str | None, Sequence[Any] | None]] = zip(
        rows[text], rows[column], strict=True
    )
    for number, (content, spans) in enumerate(pairs):
        try:
            words, own = with_tags(content or "", spans or ())
        except (ValueError, TypeError) as reason:
            raise UserError(
                f"row {number} of the split {split!r}: {reason}",
                'fix or remove it; a span is {"start": 0, "end": 4, "label": "PER"}',
            ) from reason
        tokens.append(words)
        tags.append(own)
    for name, lists in ((text, tokens), (column, tags)):
        rows = rows.add_column(f"{name} read", lists, feature=List(Value("string")))
    names = {f"{name} read": name for name in (text, column)}
    return rows.remove_columns([text, column]).rename_columns(names)
