"""What must be beaten: answers that know no pretrained network."""

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression

from hf_transfer.data.encode import as_plain_features
from hf_transfer.data.sources import Data
from hf_transfer.tasks import Task


def majority(task: Task, data: Data) -> np.ndarray:
    """Probabilities (test, classes): the shares of the classes among the training labels, for every example.

    The most frequent class is the answer; the shares are the best that can be said without looking at an input.
    """
    shares = np.bincount(data.train["label"][:], minlength=len(data.labels)) / len(data.train)
    return np.tile(shares, (len(data.test), 1))


def raw_inputs(task: Task, data: Data) -> np.ndarray:
    """Probabilities (test, classes) of a logistic regression on pixels, or on the words of texts (TF-IDF)."""
    train, test = as_plain_features(task, data.train, data.test)
    model = LogisticRegression(max_iter=2000).fit(train, data.train["label"][:])
    probabilities = np.zeros((len(data.test), len(data.labels)))
    probabilities[:, model.classes_] = model.predict_proba(test)
    return probabilities


BASELINES: dict[str, Callable[[Task, Data], np.ndarray]] = {"majority": majority, "raw_inputs": raw_inputs}
