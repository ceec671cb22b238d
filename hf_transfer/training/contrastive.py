"""The supervised contrastive loss, and batches with several examples of every class.

Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv 2004.11362).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.models.head import read_logits

TEMPERATURE = 0.1  # of the paper
EXAMPLES_PER_CLASS = 4  # in a batch
MAX_BATCH_SIZE = 128  # with more classes than fit, each batch holds some of them


def contrastive_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """The mean loss of a batch of features (n, width), which the model returns in place of logits.

    For every row: the mean over the other rows of its class of -log(exp(similarity) / sum over all
    other rows), with similarity = cosine / TEMPERATURE (L_out of the paper). Rows alone in their
    class are negatives only. Trainer sums the losses of processes and accumulated batches, which
    have `num_items_in_batch` rows together: each counts by its rows.
    """
    features = F.normalize(read_logits(outputs).float(), dim=-1)
    similarity = features @ features.T / TEMPERATURE
    itself = torch.eye(len(labels), dtype=torch.bool, device=features.device)
    others = similarity.masked_fill(itself, -torch.inf)
    log_probability = similarity - others.logsumexp(1, keepdim=True)
    is_positive = (labels[:, None] == labels[None]) & ~itself
    positives = is_positive.sum(1)
    losses = -(log_probability * is_positive).sum(1) / positives.clamp(min=1)
    mean = losses.sum() / (positives > 0).sum().clamp(min=1)
    return mean if num_items_in_batch is None else mean * len(labels) / num_items_in_batch


def balanced_order(labels: Sequence[int], training: TrainingConfig) -> "BalancedOrder":
    """The order of rows for the contrastive loss.

    --per_device_train_batch_size is the maximum of its batch size.
    """
    maximum = training.per_device_train_batch_size or MAX_BATCH_SIZE
    return BalancedOrder(labels, training.seed, maximum)


@dataclass(frozen=True)
class BalancedOrder:
    """An order of rows in which every `batch_size` rows hold EXAMPLES_PER_CLASS of each class.

    With more classes than fit into `max_batch_size`, each batch holds some of them; there is always
    room for two examples of two classes. No class is twice in a batch, and none comes again before
    all others have come. A class with fewer rows repeats them, so that a network with dropout or
    augmentation sees them twice. An epoch has as many rows as there are, rounded up to complete
    batches.
    """

    labels: Sequence[int]
    seed: int
    max_batch_size: int = MAX_BATCH_SIZE

    @property
    def batch_size(self) -> int:
        """Rows per batch."""
        room = max(2, self.max_batch_size // self.examples_per_class)
        return self.examples_per_class * min(len(set(self.labels)), room)

    @property
    def examples_per_class(self) -> int:
        """Rows of a class in a batch."""
        return max(2, min(EXAMPLES_PER_CLASS, self.max_batch_size // 2))

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size) * self.batch_size

    def of_epoch(self, epoch: int) -> list[int]:
        """The row numbers of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        labels = np.asarray(self.labels)
        rows_of_class = {}
        for label in np.unique(labels).tolist():
            rows_of_class[label] = _cycle_shuffled(np.flatnonzero(labels == label), generator)
        classes_per_batch = self.batch_size // self.examples_per_class
        order: list[int] = []
        waiting: list[int] = []  # classes, in the order in which they come
        for _ in range(len(self) // self.batch_size):
            if len(waiting) < classes_per_batch:
                # All classes again; first those that this batch does not hold already.
                classes = generator.permutation(list(rows_of_class)).tolist()
                waiting += sorted(classes, key=lambda label: label in waiting)
            for label in waiting[:classes_per_batch]:
                order += itertools.islice(rows_of_class[label], self.examples_per_class)
            waiting = waiting[classes_per_batch:]
        return order


def _cycle_shuffled(values: np.ndarray, generator: np.random.Generator) -> Iterator[int]:
    """The values again and again, each time in another random order."""
    while True:
        yield from generator.permutation(values).tolist()
