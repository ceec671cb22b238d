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
from hf_transfer.evaluation.metrics import SCORING
from hf_transfer.models.predictor import Predictor
from hf_transfer.record import ProblemType
from hf_transfer.training.trainer import SharedBuffersTrainer, phase_arguments


@dataclass(frozen=True)
class Predictions:
    """Logits of a model for a split, in the split's order, beside the ids and labels of its rows.

    `ids` (n,), `logits` (n, classes), and `labels` by the problem type: class ids (n,), rows of
    zeros and ones (n, classes), or numbers (n,).
    """

    ids: tuple[str, ...]
    logits: np.ndarray
    labels: np.ndarray
    problem_type: ProblemType = "single_label_classification"

    @property
    def outputs(self) -> np.ndarray:
        """Probabilities (n, classes), or numbers (n,) of a regression.

        Those of a row sum to 1 for one class per row; of several labels, each is independent.
        """
        return SCORING[self.problem_type].activation(self.logits)

    @property
    def predicted_labels(self) -> np.ndarray:
        """Ids of the likeliest classes (n,), whether a label applies (n, classes), or numbers."""
        return SCORING[self.problem_type].predicted_labels(self.outputs)


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
    labels = np.asarray(split["label"][:])
    if not np.array_equal(output.label_ids, labels[order]):
        raise RuntimeError(
            f"{len(output.label_ids)} predictions do not match the {len(labels)} rows of the split"
        )
    restored = logits[np.argsort(order)].astype(np.float64)
    return Predictions(tuple(split["id"][:]), restored, labels, predictor.problem_type)


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
