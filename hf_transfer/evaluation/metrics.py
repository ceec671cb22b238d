"""Metrics of each problem type, computed without a network; others come from the Hub.

METRICS has a row for each metric, SCORING how the logits of a problem type are decoded and scored.
The scores have the definitions of scikit-learn and scipy (the tests compare them), which take 10 to
200 times as long for 744 examples (Spearman's rho 2 times): the bootstrap scores 1,000 resamples.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import rankdata

from hf_transfer.errors import UserError, unknown
from hf_transfer.evaluation import tags
from hf_transfer.models.thresholds import PLAIN
from hf_transfer.record import ProblemType

# (labels, outputs) -> value. One class per row: class ids (n,) and probabilities (n, classes);
# several labels: both (n, labels); regression: numbers, both (n,).
Score = Callable[[np.ndarray, np.ndarray], float]
CLIP = 1e-7  # probabilities closer to 0 would let the log loss of one example decide all
# Probability above which a label is predicted; of a model with tuned ones (labels,).
Threshold = float | np.ndarray


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Share of examples whose most probable class is the right one."""
    return float(np.mean(probabilities.argmax(-1) == labels))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log probability of the right class, in nats."""
    return float(log_losses(labels, probabilities).mean())


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(n,) negative log probability of the right class, in nats."""
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], CLIP, 1.0))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): rows are the truth, columns the predictions."""
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


@dataclass(frozen=True)
class Counts:
    """True positives, predictions and examples (support) of every class, each (classes,)."""

    true_positives: np.ndarray
    predicted: np.ndarray
    support: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """Share of the examples of a class that are predicted as it; 0 where it has none."""
        return _divide(self.true_positives, self.support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall; 0 for a class in neither truth nor predictions."""
        return _divide(2 * self.true_positives, self.predicted + self.support)


def count_classes(labels: np.ndarray, probabilities: np.ndarray) -> Counts:
    """Counts where each example has one class."""
    matrix = confusion_matrix(labels, probabilities.argmax(-1), probabilities.shape[1])
    return Counts(np.diag(matrix), matrix.sum(0), matrix.sum(1))


def count_labels(
    labels: np.ndarray, probabilities: np.ndarray, threshold: Threshold = PLAIN
) -> Counts:
    """Counts where each example has any number of labels."""
    predicted = probabilities > threshold
    return Counts((labels * predicted).sum(0), predicted.sum(0), labels.sum(0))


def f1_macro(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean F1 over the classes in truth or predictions."""
    return _mean_f1(count_classes(labels, probabilities))


def f1_weighted(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean F1 over classes, weighted by their number of examples."""
    counts = count_classes(labels, probabilities)
    return float(np.average(counts.f1, weights=counts.support))


def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean recall over the classes that have examples."""
    counts = count_classes(labels, probabilities)
    return float(counts.recall[counts.support > 0].mean())


def multi_label_f1_macro(
    labels: np.ndarray, probabilities: np.ndarray, threshold: Threshold = PLAIN
) -> float:
    """Mean F1 over the labels in truth or predictions."""
    return _mean_f1(count_labels(labels, probabilities, threshold))


def multi_label_f1_micro(
    labels: np.ndarray, probabilities: np.ndarray, threshold: Threshold = PLAIN
) -> float:
    """F1 of all decisions, example by label, together; 0 where no label is in any."""
    counts = count_labels(labels, probabilities, threshold)
    both = counts.predicted.sum() + counts.support.sum()
    return float(2 * counts.true_positives.sum() / both) if both else 0.0


def exact_match(
    labels: np.ndarray, probabilities: np.ndarray, threshold: Threshold = PLAIN
) -> float:
    """Share of examples with all labels right."""
    return float(np.mean(np.all((probabilities > threshold) == labels, axis=1)))


def multi_label_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log probability of the truth over examples and labels, in nats."""
    right = np.where(labels > 0, probabilities, 1 - probabilities)
    return float(-np.mean(np.log(np.clip(right, CLIP, 1.0))))


def rmse(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Root of the mean squared error, in the unit of the labels."""
    return float(np.sqrt(np.mean((labels - predicted) ** 2)))


def mae(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean absolute error, in the unit of the labels."""
    return float(np.mean(np.abs(labels - predicted)))


def r2(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the variance of the labels that is explained.

    It is below 0 where their mean predicts better, and 0 where they do not vary.
    """
    variation = np.sum((labels - labels.mean()) ** 2)
    return float(1 - np.sum((labels - predicted) ** 2) / variation) if variation > 0 else 0.0


def pearson(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Linear correlation; 0 where either is constant."""
    if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return 0.0
    a = labels - labels.mean()
    b = predicted - predicted.mean()
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


def spearman(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Correlation of the ranks; 0 where either is constant."""
    return pearson(rankdata(labels), rankdata(predicted))


def _mean_f1(counts: Counts) -> float:
    occurs = (counts.predicted + counts.support) > 0
    return float(counts.f1[occurs].mean()) if occurs.any() else 0.0


def _divide(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Their ratio; 0 where the total is."""
    return np.divide(counts, totals, out=np.zeros(len(counts)), where=totals > 0)


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed, named and shown.

    A share is between 0 and 1 and shown in per cent. A proportion is the share of the examples that
    are right, so that Wilson's interval applies. `hub_id` names the metric in a model card.
    """

    name: str
    title: str
    score: Callable[..., Any]  # a Score; in TAG_METRICS a TagScore
    hub_id: str
    higher_is_better: bool = True
    is_share: bool = False
    is_proportion: bool = False
    decides: bool = False  # whether its score takes the `threshold` of labels

    def at(self, threshold: Threshold | None) -> "Metric":
        """The metric where labels are predicted above this threshold, if it depends on it."""
        if threshold is None or not self.decides:
            return self
        return replace(self, score=functools.partial(self.score, threshold=threshold))


def _rows(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


_share = functools.partial(Metric, is_share=True)
_decision = functools.partial(_share, decides=True)
_error = functools.partial(Metric, higher_is_better=False)


METRICS: dict[ProblemType, dict[str, Metric]] = {
    "single_label_classification": _rows(
        _share("accuracy", "accuracy", accuracy, "accuracy", is_proportion=True),
        _share("balanced_accuracy", "balanced accuracy", balanced_accuracy, "balanced_accuracy"),
        _share("f1_macro", "F1 (macro)", f1_macro, "f1"),
        _share("f1_weighted", "F1 (weighted)", f1_weighted, "f1"),
        _error("log_loss", "log loss", log_loss, "log_loss"),
    ),
    "multi_label_classification": _rows(
        _decision("f1_micro", "F1 (micro)", multi_label_f1_micro, "f1"),
        _decision("f1_macro", "F1 (macro)", multi_label_f1_macro, "f1"),
        _decision("exact_match", "exact match", exact_match, "exact_match", is_proportion=True),
        _error("log_loss", "log loss", multi_label_log_loss, "log_loss"),
    ),
    "regression": _rows(
        _error("rmse", "RMSE", rmse, "rmse"),
        _error("mae", "MAE", mae, "mae"),
        Metric("r2", "R²", r2, "r_squared"),
        Metric("pearson", "Pearson's r", pearson, "pearsonr"),
        Metric("spearman", "Spearman's rho", spearman, "spearmanr"),
    ),
}


# Of words with tags. The first three need tags that mark entities.
TAG_METRICS = _rows(
    _share("entity_f1", "entity F1", tags.entity_f1, "seqeval"),
    _share("entity_precision", "entity precision", tags.entity_precision, "seqeval"),
    _share("entity_recall", "entity recall", tags.entity_recall, "seqeval"),
    _share("accuracy", "accuracy", tags.tag_accuracy, "accuracy"),
    _share("f1_macro", "F1 (macro)", tags.tag_f1_macro, "f1"),
    _error("log_loss", "log loss", tags.tag_log_loss, "log_loss"),
)


@dataclass(frozen=True)
class Scoring:
    """How the logits of a problem type are decoded, and by what they are scored by default."""

    activation: Callable[[np.ndarray], np.ndarray]  # logits (n, labels) -> what a Score takes
    predicted_labels: Callable[[np.ndarray], np.ndarray]  # of these outputs
    default_metrics: tuple[str, ...]
    loss: Score  # what training minimizes, of outputs
    # (labels, outputs, labels of all training rows) -> score of each row (n,), 1 where it is right
    row_scores: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


SCORING: dict[ProblemType, Scoring] = {
    "single_label_classification": Scoring(
        activation=lambda logits: softmax(logits, axis=-1),
        predicted_labels=lambda probabilities: probabilities.argmax(-1),
        default_metrics=("accuracy", "f1_macro", "log_loss"),
        loss=log_loss,
        row_scores=lambda labels, outputs, _: (outputs.argmax(-1) == labels).astype(float),
    ),
    "multi_label_classification": Scoring(
        activation=expit,
        predicted_labels=lambda probabilities: probabilities > PLAIN,
        default_metrics=("f1_micro", "f1_macro", "exact_match", "log_loss"),
        loss=multi_label_log_loss,
        row_scores=lambda labels, outputs, _: ((outputs > PLAIN) == labels).mean(1),
    ),
    "regression": Scoring(
        activation=lambda logits: logits[:, 0],
        predicted_labels=lambda numbers: numbers,
        default_metrics=("rmse", "mae", "r2"),
        loss=rmse,
        row_scores=lambda labels, outputs, training: (
            1 - (labels - outputs) ** 2 / (float(np.var(training)) or 1.0)
        ),
    ),
}


def find_metric(name: str, problem_type: ProblemType) -> Metric:
    """The metric called `name`: a row of METRICS, else one of the `evaluate` library.

    The latter is downloaded when it first scores. Its title is its name, and nobody knows whether
    it is a share.
    """
    known = METRICS[problem_type].get(name) or TAG_METRICS.get(name)
    return known or Metric(name, name, functools.partial(_score_by_evaluate, name), name)


def load_metric(name: str, problem_type: ProblemType = "single_label_classification") -> Metric:
    """The metric called `name`, ready to score.

    Those of the `evaluate` library are for one class per row. Raises UserError for a metric that
    does not fit the problem type or does not exist.
    """
    known = METRICS[problem_type]
    if name in known:
        return known[name]
    others: list[str] = [other for other, metrics in METRICS.items() if name in metrics]
    others += ["token-classification"] if name in TAG_METRICS else []
    if others or problem_type != "single_label_classification":
        of_others = f"; {name} is for {' and '.join(others)}" if others else ""
        raise UserError(
            f"the metric {name!r} does not fit {problem_type}",
            f"those that do: {', '.join(known)}{of_others}",
        )
    try:
        _load_from_evaluate(name)
    except (FileNotFoundError, ConnectionError, ModuleNotFoundError) as error:
        refusal = unknown("metric", name, known)
        hint = f"{refusal.hint}; others are looked up on the Hub, which has none of this name"
        raise UserError(refusal.message, hint) from error
    return find_metric(name, problem_type)


def require_metrics(names: Iterable[str] | None, problem_type: ProblemType | None) -> None:
    """Raise UserError for a metric that does not fit the problem type.

    A problem type of None is not known before the labels are read: then a metric of one class per
    row or of several labels will do.
    """
    for name in names or ():
        if problem_type is not None or name not in METRICS["multi_label_classification"]:
            load_metric(name, problem_type or "single_label_classification")


def load_tag_metrics(
    names: Iterable[str] | None, label_names: Iterable[str] | None = None
) -> dict[str, Metric]:
    """The metrics of words with tags called `names`, or the default ones.

    Raises UserError for others, and for those of entities where no tags mark any; `label_names` of
    None are not known yet.
    """
    marks = label_names is None or tags.tag_types(tuple(label_names))
    default = ("entity_f1", "accuracy", "f1_macro") if marks else ("accuracy", "f1_macro")
    found = {}
    for name in names or default:
        if name not in TAG_METRICS:
            raise unknown("metric of words with tags", name, TAG_METRICS)
        if name.startswith("entity") and not marks:
            raise UserError(
                f"the metric {name!r} needs tags that mark entities, as B-PER, I-PER and O",
                "leave it out: accuracy and f1_macro are by tag",
            )
        found[name] = TAG_METRICS[name]
    return found


@functools.cache
def _load_from_evaluate(name: str) -> Any:
    import evaluate  # it imports datasets, which takes seconds

    return evaluate.load(name, keep_in_memory=True)


def _score_by_evaluate(name: str, labels: np.ndarray, probabilities: np.ndarray) -> float:
    metric = _load_from_evaluate(name)
    computed = metric.compute(references=labels, predictions=probabilities.argmax(-1))
    return float(next(iter(computed.values())))
