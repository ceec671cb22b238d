"""Predictions of a model for the rows of a split."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import ProgressCallback

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.token_labels import IGNORED, flat_labels
from hf_transfer.evaluation.metrics import SCORING
from hf_transfer.models.predictor import Predictor
from hf_transfer.record import ProblemType
from hf_transfer.training.trainer import SharedBuffersTrainer, phase_arguments


@dataclass(frozen=True)
class Predictions:
    """Logits of a model for a split, in the split's order, beside the ids and labels of its rows.

    `ids` (n,), `logits` (n, classes), and `labels` by the problem type: class ids (n,), rows of
    zeros and ones (n, classes), or numbers (n,). Where each word of a row has a label, `logits` and
    `labels` are those of all words, and `row_of_word` (words,) the number of the row of each.
    """

    ids: tuple[str, ...]
    logits: np.ndarray
    labels: np.ndarray
    problem_type: ProblemType = "single_label_classification"
    row_of_word: np.ndarray | None = None
    thresholds: np.ndarray | None = None  # (labels,) of a model of several labels, if not 0.5

    @property
    def outputs(self) -> np.ndarray:
        """Probabilities (n, classes), or numbers (n,) of a regression.

        Those of a row sum to 1 for one class per row; of several labels, each is independent.
        """
        return SCORING[self.problem_type].activation(self.logits)

    @property
    def predicted_labels(self) -> np.ndarray:
        """Ids of the likeliest classes (n,), whether a label applies (n, classes), or numbers."""
        if self.thresholds is not None:
            return self.outputs > self.thresholds
        return SCORING[self.problem_type].predicted_labels(self.outputs)

    def mean_of_rows(self, scores: np.ndarray) -> np.ndarray:
        """(n,) the mean score of the words of each row; as they are, where rows have one label."""
        if self.row_of_word is None:
            return scores
        return np.bincount(self.row_of_word, scores) / np.bincount(self.row_of_word)


def predict(
    predictor: Predictor, split: Dataset, training: TrainingConfig | None = None
) -> Predictions:
    """Predictions for every row exactly once, the same in every process.

    `training` has the device, the precision and the batch size. Texts are sorted by length, so that
    batches need little padding. Raises RuntimeError if the gathered labels are not those of the
    split: a row was lost or counted twice.
    """
    encoder = predictor.encoder
    rows = encoder.rows(split)
    lengths = rows["length"][:] if encoder.by_length else np.zeros(len(rows))
    order = np.argsort(lengths, kind="stable")
    output = _run(predictor, rows.select(order), training or TrainingConfig())
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    stored = split["label"][:]
    labels = flat_labels(stored)
    restored = np.argsort(order)
    logits = logits[restored].astype(np.float64)
    answered = output.label_ids[restored]
    row_of_word = None
    if logits.ndim == 3:  # of tokens, window after window of each row
        logits = logits[answered != IGNORED]
        answered = answered[answered != IGNORED]
        row_of_word = np.repeat(np.arange(len(stored)), list(map(len, stored)))
    if not np.array_equal(answered, labels):
        raise RuntimeError(
            f"{len(answered)} predictions do not match the {len(labels)} labels of the split"
        )
    return Predictions(
        ids=tuple(split["id"][:]),
        logits=logits,
        labels=labels,
        problem_type=predictor.problem_type,
        row_of_word=row_of_word,
        thresholds=predictor.thresholds,
    )


def _run(predictor: Predictor, rows: Dataset, training: TrainingConfig) -> Any:
    with TemporaryDirectory() as folder:
        arguments = phase_arguments(
            training,
            Path(folder),
            per_device_train_batch_size=1,  # Trainer wants a number, and nothing is trained
            num_train_epochs=1,
            max_steps=-1,
            train_sampling_strategy="random",  # by length, Trainer would sort these rows again
            eval_strategy="no",
            save_strategy="no",
        )
        trainer = SharedBuffersTrainer(
            model=predictor.model,
            args=arguments,
            data_collator=predictor.encoder.collate,
            finish=predictor.encoder.finish,
            compute_loss_func=_no_loss,
        )
        trainer.remove_callback(ProgressCallback)
        return trainer.predict(rows)


def _no_loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    """Zero, in place of the model's own loss, which not every model has."""
    return torch.zeros((), device=labels.device)
