from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_transfer.data.single_label import (
    check_label,
    encode_labels,
    find_label_names,
    natural_order,
    require_learnable,
    similar_names,
)
from hf_transfer.errors import UserError


def test_a_class_label_keeps_its_names_and_order() -> None:
    rows = Dataset.from_dict(
        {"y": ["zebra", "ant"]}, features=Features({"y": ClassLabel(names=["zebra", "ant", "cow"])})
    )
    assert find_label_names({"train": rows}, "y") == ("zebra", "ant", "cow")
    assert encode_labels(rows, "y", ("zebra", "ant", "cow")) == [0, 1]


def test_number_labels_are_ordered_by_value_not_as_text() -> None:
    rows = Dataset.from_dict({"y": list(range(11, -1, -1))})
    names = find_label_names({"train": rows}, "y")
    assert names == tuple(str(n) for n in range(12))
    assert encode_labels(rows, "y", names) == list(range(11, -1, -1))


def test_text_labels_with_numbers_are_ordered_as_people_order_them() -> None:
    rows = Dataset.from_dict({"y": ["item10", "item2", "item1"]})
    assert find_label_names({"train": rows}, "y") == ("item1", "item2", "item10")


def test_labels_of_all_splits_are_known() -> None:
    splits = {
        "train": Dataset.from_dict({"y": ["a", "b"]}),
        "test": Dataset.from_dict({"y": ["c"]}),
    }
    assert find_label_names(splits, "y") == ("a", "b", "c")


@pytest.mark.parametrize(
    ("feature", "known", "label", "reason"),
    [
        (Value("string"), None, None, "no label"),
        (Value("string"), None, " ", "no label"),
        (Value("string"), None, "a", None),
        (
            Value("string"),
            ("a", "b"),
            "c",
            "label out of range: 'c' is no name of the training split",
        ),
        (Value("int64"), None, -1, None),  # as good a name as any
        (Value("bool"), None, False, None),
        (ClassLabel(names=["a", "b"]), ("a", "b"), 1, None),
        (
            ClassLabel(names=["a", "b"]),
            ("a", "b"),
            -1,
            "label out of range: -1 is not one of 0 to 1",
        ),
        (ClassLabel(names=["a", "b"]), ("a", "b"), 2, "label out of range: 2 is not one of 0 to 1"),
    ],
)
def test_a_label_that_is_missing_or_no_class_fails_the_check(
    feature: Any, known: Any, label: Any, reason: str | None
) -> None:
    assert check_label(feature, known, label) == reason


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(UserError, match="one class only: 'b'"):
        require_learnable([1, 1], ("a", "b"))


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["1", "0", "-1", "-2", "2"], ("-2", "-1", "0", "1", "2")),
        (["v1.00", "v1.0", "v02.0", "v2.0"], ("v1.0", "v1.00", "v02.0", "v2.0")),
        (["007", "7", "08"], ("007", "7", "08")),
        (["b10", "b2", "a"], ("a", "b2", "b10")),
        (["x", "x"], ("x",)),
    ],
)
def test_names_have_one_natural_order(names: list[str], ordered: tuple[str, ...]) -> None:
    assert natural_order(names) == ordered
    assert natural_order(reversed(names)) == ordered


def test_a_number_and_its_text_in_another_split_are_one_class() -> None:
    splits = {
        "train": Dataset.from_dict({"y": ["1", "2"]}),
        "test": Dataset.from_dict({"y": [2, 1]}),
    }
    names = find_label_names(splits, "y")
    assert names == ("1", "2")
    assert encode_labels(splits["test"], "y", names) == [1, 0]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (("billing", "BILLING", "billing "), [["billing", "BILLING", "billing "]]),
        (("a  b", "a b", "c"), [["a  b", "a b"]]),
        (("a", "b"), []),
    ],
)
def test_names_that_differ_by_case_or_spaces_alone_are_alike(
    names: tuple[str, ...], groups: list[list[str]]
) -> None:
    assert similar_names(names) == groups
