"""Metrics that need no network, as pure functions; others come from evaluate's collection on the Hub."""

from collections.abc import Callable

import evaluate
import numpy as np

from hf_transfer.errors import UserError, unknown

# (labels (n,), probabilities (n, classes)) -> value
Score = Callable[[np.ndarray, np.ndarray], float]
CLIP = 1e-7  # probabilities closer to 0 than this would make one answer's log loss decide all


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of right answers."""
    return float(np.mean(probabilities.argmax(-1) == labels))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean negative log probability of the right class, in nats."""
    right = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.clip(right, CLIP, 1.0))))


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): rows are the truth, columns the answers."""
    return np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)


def per_class_scores(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class; 0 where there is nothing to divide by."""
    right = np.diag(matrix).astype(float)
    answered, present = matrix.sum(0), matrix.sum(1)
    precision = np.divide(right, answered, out=np.zeros_like(right), where=answered > 0)
    recall = np.divide(right, present, out=np.zeros_like(right), where=present > 0)
    both = answered + present
    f1 = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    return precision, recall, f1


def f1_macro(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean F1 over the classes that occur in truth or answers."""
    matrix = confusion_matrix(labels, probabilities.argmax(-1), probabilities.shape[1])
    occurs = (matrix.sum(0) + matrix.sum(1)) > 0
    return float(per_class_scores(matrix)[2][occurs].mean())


def f1_weighted(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean F1 over classes, each weighted by its number of examples."""
    matrix = confusion_matrix(labels, probabilities.argmax(-1), probabilities.shape[1])
    return float(np.average(per_class_scores(matrix)[2], weights=matrix.sum(1)))


def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean recall over the classes that occur."""
    matrix = confusion_matrix(labels, probabilities.argmax(-1), probabilities.shape[1])
    return float(per_class_scores(matrix)[1][matrix.sum(1) > 0].mean())


SCORES: dict[str, Score] = {
    score.__name__: score for score in (accuracy, balanced_accuracy, f1_macro, f1_weighted, log_loss)
}


def load_metric(name: str) -> Score:
    """The score called `name`: one of ours, else evaluate's metric of that name, fed with the answers."""
    if name in SCORES:
        return SCORES[name]
    try:
        metric = evaluate.load(name, keep_in_memory=True)
    except (FileNotFoundError, ConnectionError, ModuleNotFoundError) as error:
        refusal = unknown("metric", name, SCORES)
        raise UserError(refusal.message, f"{refusal.hint}; others are asked of the Hub, which has none") from error
    return lambda labels, probabilities: float(
        next(iter(metric.compute(references=labels, predictions=probabilities.argmax(-1)).values()))
    )
