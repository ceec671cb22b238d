import pytest
from datasets import ClassLabel, Dataset, Features

from hf_transfer.data.labels import encode_labels, find_label_names, require_classes
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
    splits = {"train": Dataset.from_dict({"y": ["a", "b"]}), "test": Dataset.from_dict({"y": ["c"]})}
    assert find_label_names(splits, "y") == ("a", "b", "c")


def test_rows_without_a_label_are_counted_and_the_first_is_named() -> None:
    rows = Dataset.from_dict({"y": ["a", None, "b", None]})
    with pytest.raises(UserError, match="2 of 4 rows have no label in column 'y', the first is row 1"):
        encode_labels(rows, "y", ("a", "b"))


def test_the_minus_ones_of_unlabelled_test_splits_are_no_labels() -> None:
    rows = Dataset.from_dict({"y": [-1, -1]}, features=Features({"y": ClassLabel(names=["a", "b"])}))
    with pytest.raises(UserError) as refusal:
        encode_labels(rows, "y", ("a", "b"))
    assert "--test_split" in refusal.value.hint


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(UserError, match="one class only: 'b'"):
        require_classes([1, 1], ("a", "b"))
