"""Baselines: predictions of models that know no pretrained network."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

from hf_transfer.data.encode import sound_features, which_word, word_features
from hf_transfer.data.labels import find_label_kind
from hf_transfer.data.prepared import prepare_images
from hf_transfer.data.sources import Data
from hf_transfer.data.splits import stratified_sample
from hf_transfer.data.token_labels import flat_labels
from hf_transfer.record import ProblemType
from hf_transfer.tasks import Task

MAX_ROWS = 20_000  # that a linear model is fitted on


def majority(task: Task, data: Data) -> np.ndarray:
    """Outputs that are the same for every test row: the best without looking at an input.

    Classes and labels: their shares of the training rows, (test, classes); of words with tags, of
    the training words, (test words, tags). Regression: the mean of the training labels, (test,).
    """
    labels = flat_labels(data.train["label"][:])
    if data.problem_type == "single_label_classification":
        labels = np.eye(len(data.labels))[labels]
    share = labels.mean(0)
    return np.tile(share, (len(flat_labels(data.test["label"][:])), *[1] * share.ndim))


def raw_inputs(task: Task, data: Data, max_rows: int = MAX_ROWS) -> np.ndarray:
    """Outputs of a linear model of grey levels, words or spectra, in the shapes of `majority`.

    It is fitted on at most `max_rows` training rows, stratified.
    """
    rows = data.train
    if len(rows) > max_rows:
        strata = find_label_kind(data.problem_type, task).strata(rows["label"][:])
        rows = rows.select(stratified_sample(strata, max_rows, seed=0))
    labels = flat_labels(rows["label"][:])
    train: Any
    test: Any
    if task.has_images:
        images = data.prepared or prepare_images(data.splits)
        train, test = images.thumbnails(rows), images.thumbnails(data.test)
    else:
        read = which_word if task.labels_words else FEATURES[task.modality]
        train, test = read(rows, data.test)
    return LINEAR_MODELS[data.problem_type](train, labels, test, len(data.labels))


def _logistic(train: Any, labels: np.ndarray, test: Any, classes: int) -> np.ndarray:
    model = LogisticRegression(max_iter=2000).fit(train, labels)
    probabilities = np.zeros((test.shape[0], classes))
    probabilities[:, model.classes_] = model.predict_proba(test)
    return probabilities


def _logistic_per_label(train: Any, labels: np.ndarray, test: Any, classes: int) -> np.ndarray:
    """A logistic regression a label; one that all training rows have, or none, is constant."""
    probabilities = np.tile(labels.mean(0), (test.shape[0], 1))
    for label in np.flatnonzero((labels.min(0) < 1) & (labels.max(0) > 0)):
        model = LogisticRegression(max_iter=2000).fit(train, labels[:, label])
        probabilities[:, label] = model.predict_proba(test)[:, 1]
    return probabilities


def _ridge(train: Any, labels: np.ndarray, test: Any, classes: int) -> np.ndarray:
    return Ridge().fit(train, labels).predict(test)


# Modality -> features of two splits.
FEATURES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "text": word_features,
    "audio": sound_features,
}
# (training features, labels, test features, number of classes) -> outputs
LINEAR_MODELS: dict[ProblemType, Callable[[Any, np.ndarray, Any, int], np.ndarray]] = {
    "single_label_classification": _logistic,
    "multi_label_classification": _logistic_per_label,
    "regression": _ridge,
}
BASELINES: dict[str, Callable[[Task, Data], np.ndarray]] = {
    "majority": majority,
    "raw_inputs": raw_inputs,
}
