"""Words with tags: each row has a list of words and a list of tags, one for each word."""

import itertools
import logging
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from hf_transfer.data import single_label
from hf_transfer.data.single_label import class_label_names, natural_order
from hf_transfer.data.splits import strata_of_sets
from hf_transfer.data.tag_scheme import count_orphans, tag_scheme
from hf_transfer.errors import UserError

log = logging.getLogger(__name__)

WORD = re.compile(r"\w+|[^\w\s]")  # of a text that is not split into words
IGNORED = -100  # label of a token that answers for no word, as torch's cross entropy has it


def split_words(text: str) -> list[str]:
    """The words of a text, and each of its other characters."""
    return WORD.findall(text)


def check_label(feature: Any, known: tuple[str, ...] | None, tags: Any) -> str | None:
    """Reason why the tags of a row, as stored, cannot be used; None if they can."""
    if tags is None:
        return "no tags"
    check = partial(single_label.check_label, feature.feature, known)
    return next(filter(None, map(check, tags)), None)


def check_words(words: Sequence[str | None], tags: Sequence[Any] | None) -> str | None:
    """Reason why the words of a row cannot be used; None if they can."""
    if not words:
        return "no words"
    if None in words:
        return "a word is missing"
    if tags is not None and len(tags) != len(words):
        return f"words and tags of different lengths: {len(words)} words, {len(tags)} tags"
    return None


def find_label_names(splits: dict[str, Dataset], column: str) -> tuple[str, ...]:
    """Tags in the order of their ids: those of a ClassLabel, else in natural order.

    Raises UserError for a tag of the validation split that no training row has. I- tags that follow
    no tag of their type are counted in the log.
    """
    feature = next(iter(splits.values())).features[column]
    known = class_label_names(feature)
    named = {split: _read_names(rows, column) for split, rows in splits.items()}
    tags = {split: set(itertools.chain.from_iterable(rows)) for split, rows in named.items()}
    unknown = natural_order(tags.get("validation", set()) - tags["train"])
    if unknown and known is None:
        raise UserError(
            "the validation split has tags that no training row has: "
            + ", ".join(map(repr, unknown[:5])),
            "fix them, or give training rows with these tags",
        )
    names = known or natural_order(set().union(*tags.values()))
    orphans = sum(map(count_orphans, itertools.chain.from_iterable(named.values())))
    if orphans and tag_scheme(names) == "BIO":
        log.warning(
            "%d I- tags follow no B- or I- of their type: they are learned as they are, but the "
            "strict entity F1 counts no entity there",
            orphans,
        )
    return names


def encode_labels(split: Dataset, column: str, names: tuple[str, ...]) -> list[list[int]]:
    """Ids of the tags of each row. All have passed check_label."""
    ids = dict(zip(names, range(len(names)), strict=True))
    return [list(map(ids.__getitem__, row)) for row in _read_names(split, column)]


def strata(rows: Sequence[Sequence[int]]) -> list[int]:
    """Stratum of each row: one per set of tags; the rare sets together are one."""
    present = np.zeros((len(rows), 1 + max(map(max, rows), default=0)), dtype=bool)
    for number, row in enumerate(rows):
        present[number, row] = True
    return strata_of_sets(present)


def present_tags(rows: Iterable[Iterable[int]]) -> set[int]:
    """Ids of the tags that occur."""
    return set(itertools.chain.from_iterable(rows))


def require_learnable(rows: Iterable[Iterable[int]], names: tuple[str, ...]) -> None:
    """Raise UserError unless two tags or more occur among the words."""
    single_label.require_learnable(present_tags(rows), names)


def flat_labels(labels: Sequence[Any]) -> np.ndarray:
    """The labels of rows as an array; of words with tags those of all words, one after another.

    Lists of whole numbers are tags (those of several labels a row are real numbers). Tokens that
    answer for no word are left out.
    """
    if len(labels) and isinstance(labels[0], list) and isinstance(labels[0][0], int):
        tags = np.fromiter(itertools.chain.from_iterable(labels), dtype=np.int64)
        return tags[tags != IGNORED]
    return np.asarray(labels)


def _read_names(split: Dataset, column: str) -> list[list[str]]:
    known = class_label_names(split.features[column])
    name_of = str if known is None else known.__getitem__
    return [list(map(name_of, row)) for row in split[column]]
