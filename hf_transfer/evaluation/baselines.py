"""What must be beaten: answers that know no pretrained network."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

from hf_transfer.data.encode import as_plain_features
from hf_transfer.data.sources import Data
from hf_transfer.record import ProblemType
from hf_transfer.tasks import Task


def majority(task: Task, data: Data) -> np.ndarray:
    """Outputs that are the same for every test example: the best that can be said without looking at an input.

    Classes and labels: their shares of the training examples, (test, classes). Regression: the mean, (test,).
    """
    labels = np.asarray(data.train["label"][:])
    rows = (
        np.eye(len(data.labels))[labels]
        if data.problem_type == "single_label_classification"
        else labels
    )
    share = rows.mean(0)
    return np.tile(share, (len(data.test), *[1] * share.ndim))


def raw_inputs(task: Task, data: Data) -> np.ndarray:
    """Outputs of a linear model of pixels, or of the words of texts (TF-IDF); shapes as those of `majority`."""
    train, test = as_plain_features(task, data.train, data.test)
    return LINEAR[data.problem_type](
        train, np.asarray(data.train["label"][:]), test, len(data.labels)
    )


def _classes(train: Any, labels: np.ndarray, test: Any, classes: int) -> np.ndarray:
    model = LogisticRegression(max_iter=2000).fit(train, labels)
    probabilities = np.zeros((test.shape[0], classes))
    probabilities[:, model.classes_] = model.predict_proba(test)
    return probabilities


def _labels(train: Any, rows: np.ndarray, test: Any, classes: int) -> np.ndarray:
    """A logistic regression a label; a label that applies to all training examples or to none is taken to go on so."""
    probabilities = np.tile(rows.mean(0), (test.shape[0], 1))
    for label in np.flatnonzero((rows.min(0) < 1) & (rows.max(0) > 0)):
        model = LogisticRegression(max_iter=2000).fit(train, rows[:, label])
        probabilities[:, label] = model.predict_proba(test)[:, 1]
    return probabilities


def _numbers(train: Any, numbers: np.ndarray, test: Any, classes: int) -> np.ndarray:
    return Ridge().fit(train, numbers).predict(test)


# (training features, labels, test features, number of labels) -> outputs
LINEAR: dict[ProblemType, Callable[[Any, np.ndarray, Any, int], np.ndarray]] = {
    "single_label_classification": _classes,
    "multi_label_classification": _labels,
    "regression": _numbers,
}
BASELINES: dict[str, Callable[[Task, Data], np.ndarray]] = {
    "majority": majority,
    "raw_inputs": raw_inputs,
}
