"""Scores that need no network, as pure functions; others come from evaluate's collection on the Hub.

READINGS says for each problem type how logits are read, and by which scores they are judged.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import evaluate
import numpy as np
from scipy.special import expit, softmax
from scipy.stats import rankdata

from hf_transfer.config.data import ProblemType
from hf_transfer.errors import UserError, unknown

# (labels (n,), probabilities (n, classes)) -> value; several labels: both (n, labels); regression: numbers, both (n,)
Score = Callable[[np.ndarray, np.ndarray], float]
CLIP = 1e-7  # probabilities closer to 0 than this would make one answer's log loss decide all
THRESHOLD = 0.5  # probability above which a label is taken to apply


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of right answers."""
    return float(np.mean(probabilities.argmax(-1) == labels))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean negative log probability of the right class, in nats."""
    right = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.clip(right, CLIP, 1.0))))


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): rows are the truth, columns the answers."""
    return np.bincount(labels * classes + answers, minlength=classes * classes).reshape(
        classes, classes
    )


@dataclass(frozen=True)
class Counts:
    """Of every class (classes,): right answers, answers, examples."""

    right: np.ndarray
    answered: np.ndarray
    present: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """The share of a class's examples that were answered so; 0 where there is none."""
        return np.divide(
            self.right, self.present, out=np.zeros(len(self.right)), where=self.present > 0
        )

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall; 0 where a class occurs in neither truth nor answers."""
        both = self.answered + self.present
        return np.divide(2 * self.right, both, out=np.zeros(len(self.right)), where=both > 0)


def count_classes(labels: np.ndarray, probabilities: np.ndarray) -> Counts:
    """The counts where each example has one class."""
    matrix = confusion_matrix(labels, probabilities.argmax(-1), probabilities.shape[1])
    return Counts(np.diag(matrix), matrix.sum(0), matrix.sum(1))


def count_labels(labels: np.ndarray, probabilities: np.ndarray) -> Counts:
    """The counts where each example has any number of labels."""
    answers = probabilities > THRESHOLD
    return Counts((labels * answers).sum(0), answers.sum(0), labels.sum(0))


def f1_macro(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean F1 over the classes that occur in truth or answers."""
    return _mean_f1(count_classes(labels, probabilities))


def f1_weighted(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean F1 over classes, each weighted by its number of examples."""
    counts = count_classes(labels, probabilities)
    return float(np.average(counts.f1, weights=counts.present))


def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean recall over the classes that occur."""
    counts = count_classes(labels, probabilities)
    return float(counts.recall[counts.present > 0].mean())


def labels_f1_macro(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean F1 over the labels that occur in truth or answers."""
    return _mean_f1(count_labels(labels, probabilities))


def labels_f1_micro(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """F1 of all decisions, example by label, taken together; 0 where no label occurs."""
    counts = count_labels(labels, probabilities)
    both = counts.answered.sum() + counts.present.sum()
    return float(2 * counts.right.sum() / both) if both else 0.0


def exact_match(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of examples with all labels right."""
    return float(np.mean(np.all((probabilities > THRESHOLD) == labels, axis=1)))


def labels_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean negative log probability of the truth over examples and labels, in nats."""
    right = np.where(labels > 0, probabilities, 1 - probabilities)
    return float(-np.mean(np.log(np.clip(right, CLIP, 1.0))))


def rmse(numbers: np.ndarray, answers: np.ndarray) -> float:
    """The root of the mean squared error, in the numbers' unit."""
    return float(np.sqrt(np.mean((numbers - answers) ** 2)))


def mae(numbers: np.ndarray, answers: np.ndarray) -> float:
    """The mean absolute error, in the numbers' unit."""
    return float(np.mean(np.abs(numbers - answers)))


def r2(numbers: np.ndarray, answers: np.ndarray) -> float:
    """The share of the numbers' variance that the answers explain; below 0 worse than their mean, 0 without any."""
    spread = np.sum((numbers - numbers.mean()) ** 2)
    return float(1 - np.sum((numbers - answers) ** 2) / spread) if spread > 0 else 0.0


def pearson(numbers: np.ndarray, answers: np.ndarray) -> float:
    """The linear correlation; 0 where either is constant."""
    a, b = numbers - numbers.mean(), answers - answers.mean()
    spread = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / spread) if np.ptp(numbers) > 0 and np.ptp(answers) > 0 else 0.0


def spearman(numbers: np.ndarray, answers: np.ndarray) -> float:
    """The correlation of the ranks; 0 where either is constant."""
    return pearson(rankdata(numbers), rankdata(answers))


def _mean_f1(counts: Counts) -> float:
    occurs = (counts.answered + counts.present) > 0
    return float(counts.f1[occurs].mean()) if occurs.any() else 0.0


@dataclass(frozen=True)
class Reading:
    """How the logits of a problem type are read and judged."""

    outputs: Callable[[np.ndarray], np.ndarray]  # logits (n, labels) -> what a Score takes
    answers: Callable[[np.ndarray], np.ndarray]  # outputs -> what the model says
    scores: dict[str, Score]
    usual: tuple[str, ...]  # the default of --metrics
    loss: Score  # what training makes small, of outputs
    # labels, outputs, all labels to learn from -> (n,) how right each row is, 1 at most
    right: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


READINGS: dict[ProblemType, Reading] = {
    "single_label_classification": Reading(
        outputs=lambda logits: softmax(logits, axis=-1),
        answers=lambda probabilities: probabilities.argmax(-1),
        scores={
            s.__name__: s for s in (accuracy, balanced_accuracy, f1_macro, f1_weighted, log_loss)
        },
        usual=("accuracy", "f1_macro", "log_loss"),
        loss=log_loss,
        right=lambda labels, probabilities, _: (probabilities.argmax(-1) == labels).astype(float),
    ),
    "multi_label_classification": Reading(
        outputs=expit,
        answers=lambda probabilities: probabilities > THRESHOLD,
        scores={
            "f1_micro": labels_f1_micro,
            "f1_macro": labels_f1_macro,
            "exact_match": exact_match,
            "log_loss": labels_log_loss,
        },
        usual=("f1_micro", "f1_macro", "exact_match", "log_loss"),
        loss=labels_log_loss,
        right=lambda labels, probabilities, _: ((probabilities > THRESHOLD) == labels).mean(1),
    ),
    "regression": Reading(
        outputs=lambda logits: logits[:, 0],
        answers=lambda numbers: numbers,
        scores={s.__name__: s for s in (rmse, mae, r2, pearson, spearman)},
        usual=("rmse", "mae", "r2"),
        loss=rmse,
        right=lambda numbers, answers, every: (
            1 - (numbers - answers) ** 2 / (float(np.var(every)) or 1.0)
        ),
    ),
}
COUNTED = ("accuracy", "exact_match")  # shares of examples that are right or not


def require_metrics(names: Iterable[str] | None, problem_type: ProblemType | None) -> None:
    """Raise UserError for a metric that does not fit; no problem type: it is still to be found from the labels."""
    for name in names or ():
        if problem_type is not None or name not in READINGS["multi_label_classification"].scores:
            load_metric(name, problem_type or "single_label_classification")


def load_metric(name: str, problem_type: ProblemType = "single_label_classification") -> Score:
    """The score called `name`: one of ours, else, for one class a row, evaluate's metric of that name.

    Raises UserError for one that does not fit the problem type, or that nobody has.
    """
    scores = READINGS[problem_type].scores
    if name in scores:
        return scores[name]
    others = [kind for kind, reading in READINGS.items() if name in reading.scores]
    if others or problem_type != "single_label_classification":
        of_others = f"; {name} is for {' and '.join(others)}" if others else ""
        raise UserError(
            f"the metric {name!r} does not fit {problem_type}",
            f"those that do: {', '.join(scores)}{of_others}",
        )
    try:
        metric = evaluate.load(name, keep_in_memory=True)
    except (FileNotFoundError, ConnectionError, ModuleNotFoundError) as error:
        refusal = unknown("metric", name, scores)
        raise UserError(
            refusal.message, f"{refusal.hint}; others are asked of the Hub, which has none"
        ) from error
    return lambda labels, probabilities: float(
        next(iter(metric.compute(references=labels, predictions=probabilities.argmax(-1)).values()))
    )
