"""The supervised contrastive loss, and batches in which every class has several members.

Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv 2004.11362).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.models.head import read_logits

TEMPERATURE = 0.1  # of the paper
MEMBERS = 4  # of a class in a batch
MOST_ROWS = 128  # of a batch: with more classes than fit, each batch holds some of them


def contrastive_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
) -> torch.Tensor:
    """The mean over a batch of features (n, width) that the model gives in place of logits.

    For every row: the mean over the others of its class of -log(exp(similarity) / sum over all others), similarities
    being cosines by TEMPERATURE (L_out of the paper). Rows alone in their class only push. Trainer sums the losses of
    processes and accumulated batches, which have `num_items_in_batch` rows together: each counts by its rows.
    """
    features = F.normalize(read_logits(outputs).float(), dim=-1)
    similarity = features @ features.T / TEMPERATURE
    itself = torch.eye(len(labels), dtype=torch.bool, device=features.device)
    log_share = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    same = (labels[:, None] == labels[None]) & ~itself
    partners = same.sum(1)
    losses = -(log_share * same).sum(1) / partners.clamp(min=1)
    mean = losses.sum() / (partners > 0).sum().clamp(min=1)
    return mean if num_items_in_batch is None else mean * len(labels) / num_items_in_batch


def balanced_order(labels: Sequence[int], training: TrainingConfig) -> "BalancedOrder":
    """The order of rows for the contrastive loss; --per_device_train_batch_size bounds its batches."""
    return BalancedOrder(labels, training.seed, training.per_device_train_batch_size or MOST_ROWS)


@dataclass(frozen=True)
class BalancedOrder:
    """Row numbers in an order whose every `batch_size` rows hold MEMBERS of each class, or of as many as there is room.

    There is room for `most_rows`, but always for two members of two classes. No class is twice in a batch, and none has
    its turn again before all others had theirs. A class with fewer rows gives them more
    than once, so that a network with dropout or augmentation sees them twice. An epoch has as many rows as there are,
    rounded up to whole batches.
    """

    labels: Sequence[int]
    seed: int
    most_rows: int = MOST_ROWS

    @property
    def batch_size(self) -> int:
        """Rows a batch."""
        return self.members * min(len(set(self.labels)), max(2, self.most_rows // self.members))

    @property
    def members(self) -> int:
        """Rows of a class in a batch."""
        return max(2, min(MEMBERS, self.most_rows // 2))

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size) * self.batch_size

    def of_epoch(self, epoch: int) -> list[int]:
        """The row numbers of this epoch."""
        draw = np.random.default_rng((self.seed, epoch))
        labels = np.asarray(self.labels)
        members = {
            label: _endless(np.flatnonzero(labels == label), draw)
            for label in np.unique(labels).tolist()
        }
        order, waiting = [], list[int]()
        for _ in range(len(self) // self.batch_size):
            room = self.batch_size // self.members
            if (
                len(waiting) < room
            ):  # of the next turn, those that are not in this batch already come first
                turn = draw.permutation(list(members)).tolist()
                waiting += sorted(turn, key=lambda label: label in waiting)
            chosen, waiting = waiting[:room], waiting[room:]
            order += [next(members[label]) for label in chosen for _ in range(self.members)]
        return order


def _endless(values: np.ndarray, draw: np.random.Generator) -> Iterator[int]:
    """The values in random order, again and again."""
    while True:
        yield from draw.permutation(values).tolist()
