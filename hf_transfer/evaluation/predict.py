"""A model and a split -> Predictions."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import ProgressCallback

from hf_transfer.evaluation.metrics import SCORING
from hf_transfer.record import ProblemType
from hf_transfer.training.engine import Trained
from hf_transfer.training.trainer import SharedBuffersTrainer, phase_arguments


@dataclass(frozen=True)
class Predictions:
    """What a model says of a split, in the split's order: `ids` (n,), `logits` (n, classes), `labels`.

    `labels` are ids (n,), rows of zeros and ones (n, classes) or numbers (n,), by the problem type.
    """

    ids: tuple[str, ...]
    logits: np.ndarray
    labels: np.ndarray
    problem_type: ProblemType = "single_label_classification"

    @property
    def outputs(self) -> np.ndarray:
        """Probabilities (n, classes): of one class a row they sum to 1; of several each is its own. Numbers (n,)."""
        return SCORING[self.problem_type].activation(self.logits)

    @property
    def predicted_labels(self) -> np.ndarray:
        """(n,) ids of the most probable classes; (n, classes) whether a label applies; (n,) numbers."""
        return SCORING[self.problem_type].predicted_labels(self.outputs)


def _no_loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    """In place of the model's own, which not every model has."""
    return torch.zeros((), device=labels.device)


def predict(trained: Trained, split: Dataset) -> Predictions:
    """Predictions for every example exactly once, the same on every process.

    Texts go through in the order of their length, so that batches need little padding. Raises RuntimeError if the
    gathered labels are not the split's own: an example was lost or counted twice.
    """
    rows = trained.encoder.rows(split)
    order = (
        np.argsort(rows["length"][:], kind="stable")
        if trained.encoder.by_length
        else np.arange(len(rows))
    )
    with TemporaryDirectory() as folder:
        trainer = SharedBuffersTrainer(
            model=trained.model,
            args=phase_arguments(
                trained.training,
                Path(folder),
                per_device_train_batch_size=trained.plan.batch_size,
                num_train_epochs=1,
                max_steps=-1,
                train_sampling_strategy="random",  # Trainer would reorder the rows to predict by it too
                eval_strategy="no",
                save_strategy="no",
            ),
            data_collator=trained.encoder.collate,
            compute_loss_func=_no_loss,
        )
        trainer.remove_callback(ProgressCallback)
        output = trainer.predict(rows.select(order))
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    labels = np.asarray(split["label"][:])
    if not np.array_equal(output.label_ids, labels[order]):
        raise RuntimeError(
            f"{len(output.label_ids)} predictions do not match the {len(labels)} examples of the split"
        )
    back = np.argsort(order)
    problem_type = trained.model.config.problem_type
    return Predictions(tuple(split["id"][:]), logits[back].astype(np.float64), labels, problem_type)
