"""Entities by seqeval's strict rule, scores by word and tag, intervals over sentences."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from hf_transfer.evaluation.tags import (
    count_tags,
    describe_names,
    entity_f1,
    entity_precision,
    entity_recall,
    estimate_score,
    find_entities,
    resample,
    tag_accuracy,
    tag_f1_macro,
    tag_types,
)

BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-A I-A O B-A", [(0, 2, "A"), (3, 4, "A")]),
        ("B-A B-A I-A", [(0, 1, "A"), (1, 3, "A")]),
        ("B-A I-B I-A", [(0, 1, "A")]),  # what begins with no B- is no entity
        ("I-A I-A O", []),
        ("O I-A B-A", [(2, 3, "A")]),
        ("B-A-b I-A-b", [(0, 2, "A-b")]),
        ("", []),
    ],
)
def test_entities_of_bio_tags_are_those_of_the_strict_rule(
    tags: str, spans: list[tuple[int, int, str]]
) -> None:
    assert list(find_entities(tags.split(), "BIO")) == spans


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("S-A O S-A", [(0, 1, "A"), (2, 3, "A")]),
        ("B-A I-A E-A", [(0, 3, "A")]),
        ("B-A E-A B-A E-A", [(0, 2, "A"), (2, 4, "A")]),
        ("B-A I-A O", []),  # what does not end with E- is no entity
        ("B-A E-B", []),
        ("I-A E-A", []),
        ("B-A S-A E-A", [(1, 2, "A")]),
        ("B-A I-A B-A E-A", [(2, 4, "A")]),
        ("B-A I-A L-A U-A", [(0, 3, "A"), (3, 4, "A")]),
    ],
)
def test_entities_of_bioes_tags_begin_and_end(tags: str, spans: list[tuple[int, int, str]]) -> None:
    assert list(find_entities(tags.split(), "BIOES")) == spans


def _counts(truth: list[str], answer: list[str], rows: list[int], names: tuple[str, ...] = BIO):  # type: ignore[no-untyped-def]
    ids = [np.array([names.index(tag) for tag in tags]) for tags in (truth, answer)]
    return count_tags(*ids, np.zeros(len(rows)), np.array(rows), names)


def test_entities_end_with_their_sentence() -> None:
    counts = _counts(["B-PER", "I-PER"], ["B-PER", "I-PER"], [0, 1])
    assert counts.entities[:, 0, 2].tolist() == [1, 0]


def test_an_entity_with_another_border_or_type_is_wrong() -> None:
    truth = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]
    answer = ["B-PER", "O", "B-LOC", "B-PER", "B-LOC"]
    total = _counts(truth, answer, [0] * 5).weighted(np.ones(1))
    assert entity_precision(total) == 1 / 4
    assert entity_recall(total) == 1 / 3
    assert entity_f1(total) == pytest.approx(2 / 7)
    assert tag_accuracy(total) == 2 / 5


def test_scores_by_tag_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 4, 500), rng.integers(0, 5, 500)
    rows = np.sort(rng.integers(0, 40, 500))
    total = count_tags(truth, answer, np.zeros(500), rows, BIO).weighted(np.ones(rows[-1] + 1))
    assert tag_f1_macro(total) == pytest.approx(f1_score(truth, answer, average="macro"))
    assert tag_accuracy(total) == np.mean(truth == answer)


def test_intervals_are_wider_where_the_words_of_a_sentence_are_alike() -> None:
    truth = np.zeros(1000, dtype=int)
    wrong_sentences = np.repeat(np.arange(50) % 5 == 0, 20).astype(int)
    wrong_words = (np.arange(1000) % 5 == 0).astype(int)
    rows = np.repeat(np.arange(50), 20)
    widths = []
    for answer in (wrong_sentences, wrong_words):
        counts = count_tags(truth, answer, np.zeros(1000), rows, BIO)
        measured = estimate_score(tag_accuracy, counts, resample(counts), 0.95)
        assert measured.value == 0.8
        assert measured.n == 50
        widths.append(measured.high - measured.low)
    assert widths[0] > 0.15 > 0.01 > widths[1]


def test_an_interval_is_no_point_where_every_answer_is_right() -> None:
    counts = _counts(["B-PER", "O"] * 10, ["B-PER", "O"] * 10, sorted([*range(10)] * 2))
    measured = estimate_score(entity_f1, counts, resample(counts), 0.95)
    assert (measured.value, measured.high) == (1.0, 1.0)
    assert measured.low < 0.8


@pytest.mark.parametrize(
    ("names", "described"), [(BIO, ["PER", "LOC"]), (("O", "NOUN"), ["O", "NOUN"])]
)
def test_a_table_is_by_type_where_tags_mark_entities_and_else_by_tag(
    names: tuple[str, ...], described: list[str]
) -> None:
    counts = _counts([names[1]] * 3, [names[1], names[1], "O"], [0, 1, 2], names)
    rows = describe_names(counts, resample(counts), names, 0.95)
    assert [row.label for row in rows] == described
    assert rows[described.index(names[1].removeprefix("B-"))].recall.value == pytest.approx(2 / 3)


def test_types_are_in_the_order_of_the_tags() -> None:
    assert tag_types(BIO) == ("PER", "LOC")
    assert tag_types(("O", "NOUN")) == ()
