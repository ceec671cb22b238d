"""What tags say of entities, by their names alone. Imports no heavy library."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Literal

Scheme = Literal["BIO", "BIOES", "plain"]

OUTSIDE = "O"
PREFIXED = re.compile(r"([BIESLU])-(.+)")


def tag_scheme(names: Iterable[str]) -> Scheme:
    """How tags mark entities: BIO, BIOES (also as BILOU), or not at all."""
    prefixes = set()
    for name in set(names) - {OUTSIDE}:
        found = PREFIXED.fullmatch(name)
        if not found:
            return "plain"
        prefixes.add(found[1])
    if "B" not in prefixes:
        return "plain"
    return "BIO" if prefixes <= {"B", "I"} else "BIOES"


def count_orphans(tags: Sequence[str]) -> int:
    """Number of I- tags in a sentence that follow neither B- nor I- of the same type."""
    return sum(
        tag.startswith("I-") and before[1:] != tag[1:]
        for before, tag in itertools.pairwise([OUTSIDE, *tags])
    )
