"""What must be beaten: answers that know no pretrained network."""

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from hf_transfer.data.encode import as_plain_table
from hf_transfer.tasks import Task


def majority(train_labels: np.ndarray, n: int, classes: int) -> np.ndarray:
    """Probabilities (n, classes): the shares of the classes among the training labels, for every example.

    The most frequent class is the answer; the shares are the best that can be said without looking at an input.
    """
    shares = np.bincount(train_labels, minlength=classes) / len(train_labels)
    return np.tile(shares, (n, 1))


def raw_inputs(task: Task, train: Dataset, test: Dataset, classes: int) -> np.ndarray:
    """Probabilities (n, classes) of a logistic regression on pixels, or on the words of texts (TF-IDF)."""
    first = TfidfVectorizer(sublinear_tf=True) if task.modality == "text" else FunctionTransformer()
    model = make_pipeline(first, LogisticRegression(max_iter=2000))
    model.fit(as_plain_table(task, train), train["label"][:])
    probabilities = np.zeros((len(test), classes))
    probabilities[:, model.classes_] = model.predict_proba(as_plain_table(task, test))
    return probabilities
