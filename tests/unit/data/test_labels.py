import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_transfer.config.data import DataConfig
from hf_transfer.data.labels import LABEL_KINDS, find_problem_type
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import UserError
from hf_transfer.tasks import find_task

TEXTS = find_task("text-classification")
SINGLE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def _tagged(feature: Any = None, rows: list[Any] | None = None) -> Dataset:
    features = Features({"y": feature}) if feature else None
    return Dataset.from_dict({"y": rows or [["b", "a10"], [], ["a2"]]}, features=features)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (ClassLabel(names=["a", "b"]), SINGLE),
        (Value("string"), SINGLE),
        (Value("int64"), SINGLE),
        (Value("bool"), SINGLE),
        (List(ClassLabel(names=["a", "b"])), SEVERAL),
        (List(Value("large_string")), SEVERAL),
        (List(Value("int32")), SEVERAL),
    ],
)
def test_lists_are_several_labels_and_names_are_one(feature: Any, expected: str) -> None:
    assert find_problem_type(feature, "y", None) == expected


def test_real_numbers_are_never_guessed_to_be_classes_or_a_regression() -> None:
    with pytest.raises(UserError, match="'y' holds float64 values") as refusal:
        find_problem_type(Value("float64"), "y", None)
    assert "give --problem_type regression" in refusal.value.hint
    assert find_problem_type(Value("float64"), "y", NUMBER) == NUMBER


@pytest.mark.parametrize(
    ("feature", "requested", "message", "hint"),
    [
        (Value("string"), NUMBER, "holds string values", "regression needs numbers"),
        (ClassLabel(names=["a"]), NUMBER, "holds int64 values", "regression needs numbers"),
        (
            List(Value("float32")),
            None,
            "holds list of float32 values",
            "lists of names or whole numbers",
        ),
        (
            List(List(Value("string"))),
            None,
            "holds list of list of string values",
            "lists of names",
        ),
        (List(Value("string")), SINGLE, "holds list of string values", "one class per row"),
        (Value("int64"), SEVERAL, "holds int64 values", "lists of names"),
        (Value("timestamp[s]"), None, "holds timestamp[s] values", "one class per row"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(
    feature: Any, requested: Any, message: str, hint: str
) -> None:
    with pytest.raises(UserError) as refusal:
        find_problem_type(feature, "y", requested)
    assert message in refusal.value.message
    assert hint in refusal.value.hint


def test_lists_become_rows_of_zeros_and_ones_in_the_order_of_the_names() -> None:
    names = LABEL_KINDS[SEVERAL].find_label_names({"train": _tagged()}, "y")
    assert names == ("a2", "a10", "b")
    assert LABEL_KINDS[SEVERAL].encode_labels(_tagged(), "y", names) == [
        [0, 1, 1],
        [0, 0, 0],
        [1, 0, 0],
    ]


def test_lists_of_a_class_label_keep_its_order() -> None:
    rows = _tagged(List(ClassLabel(names=["z", "a"])), [["a"], ["z", "a"]])
    names = LABEL_KINDS[SEVERAL].find_label_names({"train": rows}, "y")
    assert names == ("z", "a")
    assert LABEL_KINDS[SEVERAL].encode_labels(rows, "y", names) == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("train", "test", "names", "encoded"),
    [
        (["a, b", "", "c"], ["c,a"], ("a", "b", "c"), [[1, 0, 1]]),
        (
            ["x, y|z", "z", None],
            ["x, y"],
            ("x, y", "z"),
            [[1, 0]],
        ),  # only the training split shows what separates
    ],
)
def test_a_text_column_may_name_several_labels(
    train: list[str], test: list[str], names: tuple[str, ...], encoded: list[list[float]]
) -> None:
    splits = {"train": _tagged(Value("string"), train), "test": _tagged(Value("string"), test)}
    assert LABEL_KINDS[SEVERAL].find_label_names(splits, "y") == names
    assert LABEL_KINDS[SEVERAL].encode_labels(splits["test"], "y", names) == encoded


TAGS = List(ClassLabel(names=["a", "b"]))


@pytest.mark.parametrize(
    ("problem_type", "feature", "label", "reason"),
    [
        (SEVERAL, List(Value("string")), None, "no label"),
        (SEVERAL, List(Value("string")), ["a", None], "no label"),
        (SEVERAL, List(Value("string")), ["b", "b"], "label listed twice"),
        (SEVERAL, List(Value("int64")), [0, 1, 0], "rows of zeros and ones are not read"),
        (SEVERAL, TAGS, [0, 2], "label out of range: 2 is not one of 0 to 1"),
        (SEVERAL, TAGS, [-1], "label out of range: -1 is not one of 0 to 1"),
        (NUMBER, Value("float64"), None, "no label"),
        (NUMBER, Value("float64"), float("nan"), "no label"),
        (NUMBER, Value("float64"), float("-inf"), "label out of range: -inf is no finite number"),
        (
            NUMBER,
            Value("float64"),
            1e300,
            "label out of range: 1e+300 is no finite number of 32 bits",
        ),
    ],
)
def test_the_reason_why_a_label_cannot_be_used_is_given(
    problem_type: Any, feature: Any, label: Any, reason: str
) -> None:
    assert reason in str(LABEL_KINDS[problem_type].check_label(feature, None, label))


@pytest.mark.parametrize(
    ("problem_type", "feature", "label"),
    [
        (SEVERAL, TAGS, []),
        (SEVERAL, TAGS, [1, 0]),
        (SEVERAL, Value("string"), None),  # an empty cell of a CSV file names no label
        (NUMBER, Value("int64"), -1),
        (NUMBER, Value("float64"), 3.4e38),
    ],
)
def test_labels_that_can_be_learned_pass_the_check(
    problem_type: Any, feature: Any, label: Any
) -> None:
    assert LABEL_KINDS[problem_type].check_label(feature, None, label) is None


def test_a_cell_of_text_that_names_a_label_twice_is_refused() -> None:
    rows = _tagged(Value("string"), ["a", "0, 1, 0"])
    with pytest.raises(
        UserError, match="a row of column 'y' names the label '0' twice: 0, 1, 0"
    ) as refusal:
        LABEL_KINDS[SEVERAL].encode_labels(rows, "y", ("0", "1", "a"))
    assert "zeros and ones are not read" in refusal.value.hint


def _load(path: Path, rows: list[dict[str, Any]], **config: Any) -> Data:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return load_data(DataConfig(str(path), **config), TEXTS, seed=0)


def test_lists_in_a_file_are_several_labels_and_an_empty_one_is_an_example(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "labels": [["x", "y"], [], ["y"]][n % 3]} for n in range(60)]
    data = _load(tmp_path / "rows.jsonl", rows)
    assert (data.problem_type, data.labels) == (SEVERAL, ("x", "y"))
    assert data.train.features["label"] == List(Value("float32"))
    assert {tuple(row) for row in data.train["label"]} == {(1.0, 1.0), (0.0, 0.0), (0.0, 1.0)}
    assert (
        sum(data.test["label"][:][n][0] for n in range(len(data.test))) == 4
    )  # a fifth of each set of labels


def test_a_regression_has_one_label_the_name_of_its_column(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "price": n / 4} for n in range(60)]
    data = _load(
        tmp_path / "rows.jsonl",
        rows,
        label_column="price",
        problem_type=NUMBER,
        max_train_samples=20,
    )
    assert (data.problem_type, data.labels) == (NUMBER, ("price",))
    assert data.train.features["label"] == Value("float32")
    assert len(data.train) == 20
    assert len(data.test) == 12


@pytest.mark.parametrize(
    ("labels", "config", "message"),
    [
        ([0.5, 1.5], {}, "holds float64 values"),
        (
            [0.5, 1.5],
            {"problem_type": NUMBER, "examples_per_class": 3},
            "examples per class can be counted",
        ),
        ([["a"], ["b"]], {"examples_per_class": 3}, "examples per class can be counted"),
        ([["a"], []], {}, "the training split has one label only: 'a'"),
        ([2.5, 2.5], {"problem_type": NUMBER}, "the training split holds one label only: 2.5"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    labels: list[Any], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    rows = [{"text": f"t{n}", "label": labels[n % 2]} for n in range(30)]
    with pytest.raises(UserError, match=message):
        _load(tmp_path / "rows.jsonl", rows, **config)


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("['red', 'two words']", ["red", "two words"]),
        ('["red", "it\'s"]', ["it's", "red"]),
        ("['red' 'blue']", ["blue", "red"]),
        ("[1, 2]", ["1", "2"]),
        ("[]", []),
        ("red, blue", ["blue", "red"]),
        ("[sic], blue", ["[sic]", "blue"]),
    ],
)
def test_a_list_written_as_text_names_its_labels(cell: str, names: list[str]) -> None:
    rows = Dataset.from_dict({"y": [cell]})
    assert sorted(LABEL_KINDS[SEVERAL].find_label_names({"train": rows}, "y")) == names
