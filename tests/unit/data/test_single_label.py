from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_transfer.data.single_label import (
    check_label,
    encode_labels,
    find_label_names,
    require_learnable,
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
