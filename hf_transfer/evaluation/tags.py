"""Words with tags: counts that add up over sentences, and the scores of their sums.

Words of a sentence are not independent, so intervals are over the choice of the sentences: the
counts of a resample are a weighted sum.

Entities are those of seqeval's strict mode, found here: that package has had no release since 2020,
and reads a bare `ORG` as outside and `PER` as the type `ER`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hf_transfer.data.tag_scheme import OUTSIDE, Scheme, tag_scheme
from hf_transfer.evaluation.intervals import RESAMPLES, interval_of_draws, share_interval
from hf_transfer.record import ClassMetrics, Estimate

Span = tuple[int, int, str]  # first word, the one behind the last, type
TagScore = Callable[["TagCounts"], np.ndarray]  # counts (..., names, 3) -> values (...)
RIGHT, PREDICTED, TRUE = 0, 1, 2


@dataclass(frozen=True)
class TagCounts:
    """Words by tag and entities by type, right, predicted and true; of sentences, or of their sums.

    `tags` (..., tags, 3), `entities` (..., types, 3), `losses` (...) the log losses of all words.
    Tags that mark no entities have no types.
    """

    tags: np.ndarray
    entities: np.ndarray
    losses: np.ndarray

    def weighted(self, weights: np.ndarray) -> "TagCounts":
        """The sums over sentences, each times its weight."""
        tables = (self.tags, self.entities, self.losses)
        return TagCounts(*(np.tensordot(weights, table, 1) for table in tables))


def tag_types(label_names: Sequence[str]) -> tuple[str, ...]:
    """The types of entities that tags mark, in order; none for plain tags."""
    if tag_scheme(label_names) == "plain":
        return ()
    return tuple(dict.fromkeys(name[2:] for name in label_names if name != OUTSIDE))


def count_tags(
    labels: np.ndarray,
    predicted: np.ndarray,
    losses: np.ndarray,
    row_of_word: np.ndarray,
    label_names: Sequence[str],
) -> TagCounts:
    """The counts of each row of words (rows, ...); all arrays have a value for each word."""
    rows = int(row_of_word.max()) + 1
    types = tag_types(label_names)
    scheme = tag_scheme(label_names)
    entities = np.zeros((rows, len(types), 3))
    by_tag = [
        _count_cells(row_of_word, labels, labels == predicted, (rows, len(label_names))),
        _count_cells(row_of_word, predicted, None, (rows, len(label_names))),
        _count_cells(row_of_word, labels, None, (rows, len(label_names))),
    ]
    borders = np.searchsorted(row_of_word, np.arange(1, rows))
    both = zip(np.split(labels, borders), np.split(predicted, borders), strict=True)
    for row, (truth, answer) in enumerate(both if types else ()):
        true = set(find_entities([label_names[tag] for tag in truth], scheme))
        found = set(find_entities([label_names[tag] for tag in answer], scheme))
        for column, spans in ((RIGHT, true & found), (PREDICTED, found), (TRUE, true)):
            for span in spans:
                entities[row, types.index(span[2]), column] += 1
    return TagCounts(np.stack(by_tag, -1), entities, np.bincount(row_of_word, losses, rows))


def _count_cells(
    rows: np.ndarray, columns: np.ndarray, weights: np.ndarray | None, shape: tuple[int, int]
) -> np.ndarray:
    cells = np.bincount(rows * shape[1] + columns, weights, shape[0] * shape[1])
    return cells.reshape(shape).astype(float)


def find_entities(tags: Sequence[str], scheme: Scheme) -> Iterator[Span]:
    """The entities that the tags of a sentence mark, by the strict rule.

    BIO: B-, and any I- of its type. BIOES: S-, or B-, any I- and E- of one type; L- and U- are
    other names of E- and S-. All else is no entity.
    """
    start = -1  # of the entity that is open
    kind = ""
    for number, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, own = tag.partition("-")
        goes_on = start >= 0 and own == kind
        if scheme == "BIOES" and goes_on and prefix in "EL":
            yield start, number + 1, kind
        if prefix != "I" or not goes_on:
            if scheme == "BIO" and start >= 0:
                yield start, number, kind
            start, kind = (number, own) if prefix == "B" else (-1, "")
        if prefix in ("S", "U"):
            yield number, number + 1, own


# --- scores of sums ---


def tag_accuracy(counts: TagCounts) -> np.ndarray:
    """Share of the words with the right tag."""
    return _ratio(counts.tags[..., RIGHT].sum(-1), counts.tags[..., TRUE].sum(-1))


def tag_f1_macro(counts: TagCounts) -> np.ndarray:
    """Mean F1 over the tags in truth or predictions."""
    occurs = counts.tags[..., PREDICTED] + counts.tags[..., TRUE] > 0
    return _ratio((f1_scores(counts.tags) * occurs).sum(-1), occurs.sum(-1))


def tag_log_loss(counts: TagCounts) -> np.ndarray:
    """Mean negative log probability of the right tag, in nats."""
    return _ratio(counts.losses, counts.tags[..., TRUE].sum(-1))


def entity_f1(counts: TagCounts) -> np.ndarray:
    """F1 of all entities together: those with the right words and the right type are right."""
    return f1_scores(counts.entities.sum(-2))


def entity_precision(counts: TagCounts) -> np.ndarray:
    """Share of the predicted entities that are right."""
    return precisions(counts.entities.sum(-2))


def entity_recall(counts: TagCounts) -> np.ndarray:
    """Share of the true entities that are found."""
    return recalls(counts.entities.sum(-2))


def precisions(table: np.ndarray) -> np.ndarray:
    """Precision of counts (..., 3)."""
    return _ratio(table[..., RIGHT], table[..., PREDICTED])


def recalls(table: np.ndarray) -> np.ndarray:
    """Recall of counts (..., 3)."""
    return _ratio(table[..., RIGHT], table[..., TRUE])


def f1_scores(table: np.ndarray) -> np.ndarray:
    """F1 of counts (..., 3); 0 for what is in neither truth nor predictions."""
    return _ratio(2 * table[..., RIGHT], table[..., PREDICTED] + table[..., TRUE])


def _ratio(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Their ratio; 0 where the total is."""
    return np.divide(counts, totals, out=np.zeros(np.shape(totals)), where=np.asarray(totals) > 0)


# --- intervals ---


def resample(counts: TagCounts, seed: int = 0) -> TagCounts:
    """The sums of RESAMPLES resamples of the sentences (resamples, ...), the same each time."""
    rng = np.random.default_rng(seed)
    rows = len(counts.losses)
    drawn = []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(float)
        drawn.append(counts.weighted(weights))
    return TagCounts(
        np.stack([each.tags for each in drawn]),
        np.stack([each.entities for each in drawn]),
        np.stack([each.losses for each in drawn]),
    )


def estimate_score(score: TagScore, counts: TagCounts, drawn: TagCounts, level: float) -> Estimate:
    """A score of all sentences with its interval over their choice."""
    rows = len(counts.losses)
    return _estimate(float(score(counts.weighted(np.ones(rows)))), score(drawn), level, rows)


def describe_names(
    counts: TagCounts, drawn: TagCounts, label_names: Sequence[str], level: float
) -> list[ClassMetrics]:
    """Precision, recall and F1 of every type of entities, or of every plain tag."""
    types = tag_types(label_names)
    table, resampled = (counts.entities, drawn.entities) if types else (counts.tags, drawn.tags)
    total = table.sum(0)
    rows = []
    for number, name in enumerate(types or label_names):
        estimates = [
            _estimate(float(score(total[number])), score(resampled[:, number]), level, len(table))
            for score in (precisions, recalls, f1_scores)
        ]
        rows.append(ClassMetrics(name, int(total[number, TRUE]), *estimates))
    return rows


def _estimate(value: float, draws: np.ndarray, level: float, rows: int) -> Estimate:
    if value in (0.0, 1.0) and np.all(draws == value):  # resampling would claim to be certain
        return share_interval(round(value * rows), rows, level)
    return interval_of_draws(value, draws, level, rows)
