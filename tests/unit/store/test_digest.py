"""Keys of the store: equal facts have equal digests, other facts have others."""

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_transfer.store.activations import digest
from tests.unit.store.rows import finish, start

FACTS: dict[str, Any] = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "config": {"layers": 6, "act": "gelu", "rate": 0.1, "on": True, "none": None},
    "rows": ["ab", "c", b"raw"],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**FACTS, **changes}


def test_the_order_of_keys_does_not_change_the_digest() -> None:
    turned = {name: FACTS[name] for name in reversed(FACTS)} | {
        "config": dict(reversed(FACTS["config"].items()))
    }
    assert list(turned) != list(FACTS)
    assert digest(turned) == digest(FACTS)


def test_tuples_and_copies_and_memory_order_do_not_change_the_digest() -> None:
    weights = np.asfortranarray(FACTS["weights"]).astype(">f4")
    assert digest(changed(rows=tuple(FACTS["rows"]), weights=weights)) == digest(FACTS)


def test_every_kind_of_change_changes_the_digest() -> None:
    weights, flipped = FACTS["weights"], FACTS["weights"].copy()
    flipped.view(np.uint8).reshape(-1)[7] ^= 1
    others = [
        changed(weights=flipped),
        changed(weights=weights.T),
        changed(weights=weights.reshape(3, 2)),
        changed(weights=weights.view(np.int32)),
        changed(weights=weights.tolist()),
        changed(weights=weights.tobytes()),
        changed(rows=["ab", b"raw", "c"]),
        changed(rows=["a", "bc", b"raw"]),
        changed(rows=["abc", b"raw"]),
        changed(rows=["ab", "c", "raw"]),
        changed(rows=[["ab"], "c", b"raw"]),
        changed(rows=[]),
        changed(rows={}),
        changed(more=None),
        *(
            changed(config=FACTS["config"] | change)
            for change in ({"layers": 7}, {"layers": 6.0}, {"layers": "6"})
        ),
        *(
            changed(config=FACTS["config"] | change)
            for change in ({"on": 1}, {"none": 0}, {"none": ""}, {"none": "None"})
        ),
        *(
            changed(config=FACTS["config"] | change)
            for change in ({"rate": 0.1 + 2**-56}, {"rate": np.float32(0.1)})
        ),
        changed(config=FACTS["config"] | {"act": "gelu "}),
        {name: value for name, value in FACTS.items() if name != "rows"},
        {"rows2" if name == "rows" else name: value for name, value in FACTS.items()},
    ]
    assert len(others) == 26
    assert len({digest(facts) for facts in [FACTS, *others]}) == 27


def test_the_digest_is_the_same_in_another_process() -> None:
    code = "print(digest({'b': [1, 2.5, 'é'], 'a': np.arange(3)}))"
    assert finish(start(code)) == digest({"a": np.arange(3), "b": [1, 2.5, "é"]})


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        1j,
        Path("x"),
        object(),
        np.array([None]),
        np.array(["x"]),
        {1: 2, "1": 3},
        np.ma.masked_array([1, 2], [0, 1]),
        len,
    ],
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"no canonical form|not supported"):
        digest({"deep": [0, value]})


def test_members_of_an_enumeration_read_as_their_values() -> None:
    kind = enum.IntEnum("Kind", {"ONE": 1})
    assert digest({"kind": kind(1)}) == digest({"kind": 1})
