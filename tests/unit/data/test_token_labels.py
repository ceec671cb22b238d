"""Words with tags, from every source that people have them in."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hf_transfer.builtin.identifiers import TAGS, read_module
from hf_transfer.config.data import DataConfig
from hf_transfer.data.builtin import load_builtin
from hf_transfer.data.sources import Data, load_data
from hf_transfer.data.spans import with_tags
from hf_transfer.data.tag_scheme import count_orphans, tag_scheme
from hf_transfer.errors import UserError

TASK = "token-classification"
SENTENCES = [
    (["Anna", "Smith", "lives", "in", "Rome"], ["B-PER", "I-PER", "O", "O", "B-LOC"]),
    (["It", "rains"], ["O", "O"]),
]


def _rows(words: str = "tokens", tags: str = "tags", times: int = 10) -> list[dict[str, Any]]:
    return [{words: given, tags: own} for given, own in SENTENCES * times]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _load(path: Path, **flags: Any) -> Data:
    return load_data(DataConfig(dataset_name=str(path), **flags), TASK, 0)


def _first(data: Data) -> tuple[list[str], list[str]]:
    """The words and tags of the first row that has entities."""
    row = next(row for row in data.train if len(row["text"]) == 5)
    return row["text"], [data.labels[tag] for tag in row["label"]]


@pytest.mark.parametrize(
    ("words", "tags"), [("tokens", "ner_tags"), ("words", "tags"), ("tokens", "labels")]
)
def test_json_lines_with_lists_are_read(words: str, tags: str, tmp_path: Path) -> None:
    data = _load(_write(tmp_path / "rows.jsonl", _rows(words, tags)))
    assert data.labels == ("B-LOC", "B-PER", "I-PER", "O")
    assert data.columns == {"text": words, "label": tags}
    assert _first(data) == SENTENCES[0]
    assert data.problem_type == "single_label_classification"


def test_a_class_label_keeps_the_order_of_its_names(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    features = Features(
        {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))}
    )
    columns = {
        "tokens": [words for words, _ in SENTENCES * 10],
        "ner_tags": [tags for _, tags in SENTENCES * 10],
    }
    DatasetDict(train=Dataset.from_dict(columns, features)).save_to_disk(tmp_path / "saved")
    data = _load(tmp_path / "saved")
    assert data.labels == tuple(names)
    assert _first(data) == SENTENCES[0]


@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("suffix", ["conll", "iob"])
def test_conll_files_have_a_word_per_line_and_the_tag_in_the_last_column(
    separator: str, suffix: str, tmp_path: Path
) -> None:
    lines = [separator.join(("-DOCSTART-", "-X-", "O")), ""]
    for words, tags in SENTENCES * 10:
        lines += [separator.join((word, "NN", tag)) for word, tag in zip(words, tags, strict=True)]
        lines.append("")
    for split in ("train", "test"):
        (tmp_path / f"{split}.{suffix}").write_text("\n".join(lines).replace("rains", split))
    data = _load(tmp_path)
    assert _first(data) == SENTENCES[0]
    assert len(data.train) == len(data.test) == 20


def test_another_column_of_a_conll_file_can_be_named(tmp_path: Path) -> None:
    sentence = "# sent_id = 1\n# 1 O\nIt PRON O\nrains VERB O\n"
    (tmp_path / "one.conll").write_text((sentence.replace("# 1 O\n", "# SYM O\n") + "\n") * 10)
    data = _load(tmp_path / "one.conll", label_column="column_2")
    assert data.labels == ("PRON", "SYM", "VERB")
    assert data.train[0]["text"] == ["#", "It", "rains"]


def test_a_line_with_other_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.conll").write_text("It O\nrains\n")
    with pytest.raises(UserError, match=r"line 2 of 'bad\.conll' has 1 columns, the first has 2"):
        _load(tmp_path / "bad.conll")


@pytest.mark.parametrize("flags", [{}, {"text_column": "text", "label_column": "entities"}])
def test_spans_of_characters_become_tags(flags: dict[str, str], tmp_path: Path) -> None:
    text = "Anna Smith lives in Rome."
    spans = [{"start": 20, "end": 24, "label": "LOC"}, {"start": 0, "end": 10, "label": "PER"}]
    rows = [{"text": text, "entities": spans}, {"text": "It rains", "entities": []}] * 10
    data = _load(_write(tmp_path / "spans.jsonl", rows), **flags)
    assert data.columns == {"text": "text", "label": "entities"}
    found = next(row for row in data.train if len(row["text"]) == 6)
    assert found["text"] == ["Anna", "Smith", "lives", "in", "Rome", "."]
    assert [data.labels[tag] for tag in found["label"]] == [*SENTENCES[0][1], "O"]


@pytest.mark.parametrize(
    ("span", "words", "tags"),
    [
        ((0, 3), ["non", "stop"], ["B-X", "O"]),  # a word that a span ends in is cut there
        ((3, 7), ["non", "stop"], ["O", "B-X"]),
    ],
)
def test_a_span_never_takes_more_than_its_characters(
    span: tuple[int, int], words: list[str], tags: list[str]
) -> None:
    assert with_tags("nonstop", [{"start": span[0], "end": span[1], "label": "X"}]) == (words, tags)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 99)], "the span 0 to 99 (X) holds no word"),
        ([(2, 2)], "the span 2 to 2 (X) holds no word"),
        ([(0, 4), (2, 6)], "the span that begins at 2 (X) overlaps another"),
    ],
)
def test_spans_that_cannot_be_are_refused_with_their_row(
    spans: list[tuple[int, int]], message: str, tmp_path: Path
) -> None:
    marked = [{"start": start, "end": end, "label": "X"} for start, end in spans]
    path = _write(tmp_path / "spans.jsonl", [{"text": "It rains", "spans": marked}] * 10)
    with pytest.raises(UserError) as refusal:
        _load(path)
    assert refusal.value.message == f"row 0 of the split 'train': {message}"


def test_a_row_with_fewer_tags_than_words_is_left_out_and_many_are_refused(tmp_path: Path) -> None:
    bad = {"tokens": ["It", "rains"], "tags": ["O"]}
    data = _load(_write(tmp_path / "one.jsonl", [*_rows(), bad]))
    reason = "words and tags of different lengths: 2 words, 1 tags"
    assert data.dropped == ({"id": "train/20", "reason": reason},)
    with pytest.raises(UserError, match="words and tags of different lengths") as refusal:
        _load(_write(tmp_path / "many.jsonl", [*_rows(), *[bad] * 5]))
    assert "fix or remove" in refusal.value.hint


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": [], "tags": []}, "no words"),
        ({"tokens": ["It", None], "tags": ["O", "O"]}, "a word is missing"),
        ({"tokens": ["It"], "tags": None}, "no tags"),
        ({"tokens": ["It"], "tags": [None]}, "no label"),
    ],
)
def test_rows_that_cannot_be_used_are_left_out(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    data = _load(_write(tmp_path / "rows.jsonl", [*_rows(), row]))
    assert [each["reason"] for each in data.dropped] == [reason]


def test_a_tag_that_only_the_validation_split_has_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _write(tmp_path / f"{split}.jsonl", _rows())
    odd = {"tokens": ["It", "rains"], "tags": ["O", "B-ORG"]}
    _write(tmp_path / "validation.jsonl", [*_rows(), odd])
    with pytest.raises(UserError) as refusal:
        _load(tmp_path)
    assert refusal.value.message == (
        "the validation split has tags that no training row has: 'B-ORG'"
    )


def test_inside_tags_without_a_beginning_are_counted_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"tokens": ["in", "Rome", "now"], "tags": ["O", "I-LOC", "I-LOC"]}
    with caplog.at_level(logging.WARNING):
        data = _load(_write(tmp_path / "rows.jsonl", [*_rows(), row]))
    assert "1 I- tags follow no B- or I- of their type" in caplog.text
    assert "I-LOC" in data.labels
    assert not data.dropped


def test_orphans_are_counted_by_type() -> None:
    assert count_orphans(["B-A", "I-A", "I-A", "O", "I-A", "I-B"]) == 2


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        (["O", "B-A", "I-A"], "BIO"),
        (["O", "B-A", "I-A", "E-A", "S-A"], "BIOES"),
        (["O", "B-A", "L-A", "U-A"], "BIOES"),
        (["O", "A", "B"], "plain"),
        (["NOUN", "I-A"], "plain"),
        (["O", "I-A"], "plain"),
        (["O"], "plain"),
    ],
)
def test_the_scheme_shows_in_the_names_of_the_tags(names: list[str], scheme: str) -> None:
    assert tag_scheme(names) == scheme


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"tokens": ["a"], "tags": "O"}], {}, "the label column 'tags' holds string values"),
        (
            [{"text": "It rains", "tags": ["O", "O"]}],
            {"text_column": "text"},
            "'text' holds no lists of words",
        ),
        (_rows(), {"problem_type": "regression"}, "--problem_type regression does not belong"),
        (_rows(), {"examples_per_class": 3}, "not for token-classification"),
        (_rows(), {"text_pair_column": "tokens"}, "--text_pair_column does not belong"),
        (_rows(), {"image_column": "tokens"}, "--image_column does not belong"),
        ([{"tokens": ["a", "b"], "tags": ["O", "O"]}] * 20, {}, "one class only: 'O'"),
    ],
)
def test_what_does_not_fit_is_one_error(
    rows: list[dict[str, Any]], flags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refusal:
        _load(_write(tmp_path / "rows.jsonl", rows), **flags)
    assert message in refusal.value.message
    assert refusal.value.hint


CODE = '''
import os.path as way
from sys import argv

LIMIT = 3

class Cat(Animal):
    """A docstring."""

    def meow(self, times: int = LIMIT):
        """Another one."""
        loud = [len(sound) for sound in argv[:times]]  # a comment
        return self.sing(loud, key=Cat)
'''


def test_names_in_code_are_tagged_with_what_they_stand_for() -> None:
    rows = list(read_module(CODE))
    pairs = [pair for words, tags in rows for pair in zip(words, tags, strict=True)]
    tags = dict(pair for pair in pairs if pair[1] != "O")
    assert {tag: {word for word in tags if tags[word] == tag} for tag in set(tags.values())} == {
        "keyword": {"import", "as", "class", "def", "for", "in", "return"},
        "import": {"os", "path", "way", "argv"},
        "class": {"Cat"},
        "function": {"meow"},
        "parameter": {"self", "times"},
        "local": {"loud", "sound"},
        "attribute": {"sing"},
        "argument": {"key"},
        "builtin": {"int", "len"},
        "global": {"LIMIT", "Animal"},
    }
    assert "docstring" not in " ".join(word for word, _ in pairs)


def test_identifiers_come_from_other_modules_in_the_test_split() -> None:
    splits, _ = load_builtin("identifiers")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1000, "test": 300}
    train, test = (set(map(tuple, splits[name]["tokens"])) for name in ("train", "test"))
    assert not train & test
    for rows in splits.values():
        assert set().union(*rows["tags"]) == set(range(len(TAGS)))
        assert all(map(lambda words, tags: len(words) == len(tags), rows["tokens"], rows["tags"]))
