"""The frozen layers of a phase: where its boundary is, and its rows with their activations."""

import itertools
import logging
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from hf_transfer.config import TrainingConfig
from hf_transfer.data.augmentation import fit_augmentation
from hf_transfer.data.encode import Collate, Encoder
from hf_transfer.frozen.features import Features, compute_features
from hf_transfer.frozen.forward_pass import FrozenLayers, View
from hf_transfer.frozen.replay import replay_collate, replay_rows
from hf_transfer.frozen.split import Boundary, CheckedSplit, UnsplittableError, split_model
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.strategies.plan import CacheSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrozenPhase:
    """The rows of a phase with the activations of its frozen layers.

    `train` has each row once for each view. `features` are those of all splits and views.
    """

    split: CheckedSplit
    features: tuple[Features, ...]
    train: Dataset
    validation: Dataset | None
    collate: Collate

    def replaying(self) -> AbstractContextManager[None]:
        """The context in which the model takes batches of these rows."""
        return self.split.replaying()


def freeze_below(
    trainable: Collection[str],
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    cache: CacheSettings,
    train: Dataset,
    validation: Dataset | None,
) -> FrozenPhase | None:
    """The rows with the activations of all stages below the lowest that has a trainable parameter.

    None where the frozen layers have to run in every epoch: the cache is off or full, or the model
    cannot be split.
    """
    stages = checkpoint.layers
    boundary = min(stages.depth_of(name) for name in trainable)
    # The embeddings alone cost less to compute than their output to read.
    if boundary < 2 or not cache.on:
        return None
    if training.n_gpu > 1:
        log.warning(
            "the frozen layers run in every epoch: start one process per GPU with accelerate launch"
        )
        return None
    _warn_of_unused_augmentation(training, cache)
    try:
        layers = _frozen_layers(boundary, checkpoint, encoder, training, cache)
        views = _views(layers, train, training, cache)
        features = [_compute_each(views, train, cache)]
        if validation is not None and all(features):
            features.append(_compute_each([layers], validation, cache))
    except UnsplittableError as reason:
        log.warning(
            "the frozen layers below %s run in every epoch: %s", stages.stages[boundary], reason
        )
        return None
    if not all(features):
        return None
    return FrozenPhase(
        layers.split,
        features=tuple(itertools.chain.from_iterable(features)),
        train=replay_rows(train, 0, len(views)),
        validation=None if validation is None else replay_rows(validation, 1),
        collate=replay_collate(encoder, features),
    )


def compute_head_features(
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    cache: CacheSettings,
    rows: Dataset,
) -> list[Features]:
    """What a linear head reads of rows, for each view: an activation "features" (width,) per row.

    Without room in the store they are in memory. Raises UnsplittableError.
    """
    _warn_of_unused_augmentation(training, cache)
    layers = _frozen_layers("head", checkpoint, encoder, training, cache)
    return _compute_each(_views(layers, rows, training, cache), rows, cache, in_memory=True)


def cache_facts(features: Sequence[Features]) -> dict[str, Any]:
    """The record's facts about the frozen layers of a phase; `seconds` do not overlap its own."""
    passes = sum(each.passes for each in features)
    stored = any(each.nbytes for each in features)
    return {
        "frozen_passes": passes,
        "cache": "off" if not stored else "miss" if passes else "hit",
        "cached_bytes": sum(each.nbytes for each in features),
        "frozen_seconds": sum(each.seconds for each in features),
    }


def _warn_of_unused_augmentation(training: TrainingConfig, cache: CacheSettings) -> None:
    if training.augmentation != "none" and not cache.views:
        log.warning(
            "--augmentation %s has no effect on activations that are computed once: "
            "see --cached_views",
            training.augmentation,
        )


def _frozen_layers(
    boundary: Boundary,
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    cache: CacheSettings,
) -> FrozenLayers:
    """The layers below a boundary; the model is moved to the device, in eval mode."""
    stages = checkpoint.layers
    lowest = len(stages.stages) - 1 if boundary == "head" else boundary
    # Fixed parameters count as the head's stage, but what the head reads depends on them.
    above = frozenset(
        name
        for name, depth in stages.depths.items()
        if depth >= lowest and name not in checkpoint.fixed
    )
    model = checkpoint.model.eval().to(training.device)
    return FrozenLayers(
        split_model(model, boundary),
        above,
        encoder,
        batch_size=training.per_device_eval_batch_size,
        workers=training.dataloader_num_workers,
        quiet=bool(training.disable_tqdm),
        dtype=cache.dtype,
        about={"model": checkpoint.provenance.id, "boundary": stages.stages[lowest]},
    )


def _views(
    layers: FrozenLayers, rows: Dataset, training: TrainingConfig, cache: CacheSettings
) -> list[FrozenLayers]:
    """The frozen layers for each view of training rows: plain images, or each augmented anew."""
    if not cache.views:
        return [layers]
    augment = fit_augmentation(training.augmentation, layers.encoder, rows)
    return [
        replace(layers, view=View(number, training.augmentation, augment))
        for number in range(1, cache.views + 1)
    ]


def _compute_each(
    views: Sequence[FrozenLayers], rows: Dataset, cache: CacheSettings, in_memory: bool = False
) -> list[Features]:
    """The activations of rows in each view; an empty list if those of one are not stored."""
    computed = [compute_features(view, rows, cache, in_memory) for view in views]
    features = [each for each in computed if each is not None]
    return features if len(features) == len(views) else []
