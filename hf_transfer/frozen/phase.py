"""The frozen layers of a phase: where its boundary is, and its rows with their activations."""

import itertools
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.augmentation import fit_augmentation
from hf_transfer.data.encode import Collate
from hf_transfer.frozen.features import Features, compute_features
from hf_transfer.frozen.forward_pass import FrozenLayers, View
from hf_transfer.frozen.replay import replay_collate, replay_rows
from hf_transfer.frozen.split import Boundary, CheckedSplit, UnsplittableError, split_model
from hf_transfer.job import Job
from hf_transfer.strategies.plan import FrozenDtype, Plan

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


def freeze_below(
    trainable: Collection[str],
    plan: Plan,
    job: Job,
    cache: CacheConfig,
    train: Dataset,
    validation: Dataset | None,
) -> FrozenPhase | None:
    """The rows with the activations of all stages below the lowest that has a trainable parameter.

    None where the frozen layers have to run in every epoch: the cache is off or full, or the model
    cannot be split.
    """
    layer_map = job.checkpoint.layers
    boundary = min(map(layer_map.depth_of, trainable))
    # The embeddings alone cost less to compute than their output to read.
    if boundary < 2 or not cache.cache_frozen:
        return None
    if job.training.n_gpu > 1:
        log.warning(
            "the frozen layers run in every epoch: start one process per GPU with accelerate launch"
        )
        return None
    _warn_of_unused_augmentation(job.training, plan.cached_views)
    try:
        layers = _frozen_layers(boundary, job, plan.frozen_dtype)
        views = _views(layers, train, job.training, plan.cached_views)
        features = [_compute_each(views, train, cache)]
        if validation is not None and all(features):
            features.append(_compute_each([layers], validation, cache))
    except UnsplittableError as reason:
        stage = layer_map.stages[boundary]
        log.warning("the frozen layers below %s run in every epoch: %s", stage, reason)
        return None
    if not all(features):
        return None
    return FrozenPhase(
        layers.split,
        features=tuple(itertools.chain.from_iterable(features)),
        train=replay_rows(train, 0, len(views)),
        validation=None if validation is None else replay_rows(validation, 1),
        collate=replay_collate(job.encoder, features),
    )


def compute_head_features(
    job: Job, rows: Dataset, cache: CacheConfig, dtype: FrozenDtype, views: int = 0
) -> list[Features]:
    """What a linear head reads of rows, for each view: an activation "features" (width,) per row.

    Without room in the store they are in memory. Raises UnsplittableError.
    """
    _warn_of_unused_augmentation(job.training, views)
    each_view = _views(_frozen_layers("head", job, dtype), rows, job.training, views)
    return _compute_each(each_view, rows, cache, in_memory=True)


def compute_layer(boundary: Boundary, job: Job, rows: Dataset, cache: CacheConfig) -> Features:
    """The output right below a boundary, in float32: an activation "features" (width,) per row.

    At the head, what it reads; elsewhere, the mean over all positions. Without room in the store
    they are in memory. Raises UnsplittableError.
    """
    layers = _frozen_layers(boundary, job, "float32", averages=boundary != "head")
    features = compute_features(layers, rows, cache, in_memory=True)
    assert features is not None
    return features


def cache_facts(features: Sequence[Features]) -> dict[str, Any]:
    """The record's facts about the frozen layers of a phase; `seconds` do not overlap its own."""
    facts: dict[str, Any] = {"frozen_passes": 0, "cached_bytes": 0, "frozen_seconds": 0}
    for each in features:
        facts["frozen_passes"] += each.passes
        facts["cached_bytes"] += each.nbytes
        facts["frozen_seconds"] += each.seconds
    missed = "miss" if facts["frozen_passes"] else "hit"
    return {**facts, "cache": missed if facts["cached_bytes"] else "off"}


def _warn_of_unused_augmentation(training: TrainingConfig, views: int) -> None:
    if training.augmentation != "none" and not views:
        log.warning(
            "--augmentation %s has no effect on activations that are computed once: "
            "see --cached_views",
            training.augmentation,
        )


def _frozen_layers(
    boundary: Boundary, job: Job, dtype: FrozenDtype, averages: bool = False
) -> FrozenLayers:
    """The layers below a boundary; the model is moved to the device, in eval mode.

    Raises UnsplittableError.
    """
    if job.encoder.padding == "none" and not job.encoder.equal_lengths:
        raise UnsplittableError("the answer to a text depends on the padding beside it")
    model = job.model.eval()
    layer_map = job.checkpoint.layers
    training = job.training
    lowest = layer_map.head if boundary == "head" else boundary
    # Fixed parameters count as the head's stage, but what the head reads depends on them.
    above = {name for name, depth in layer_map.depths.items() if depth >= lowest}
    model.to(training.device)
    return FrozenLayers(
        split_model(model, boundary, keeps_all=averages),
        above=frozenset(above.difference(job.checkpoint.fixed)),
        encoder=job.encoder,
        batch_size=training.per_device_eval_batch_size,
        workers=training.dataloader_num_workers or 0,
        # The trials of a study log warnings alone, and show no bars.
        quiet=bool(training.disable_tqdm) or not log.isEnabledFor(logging.INFO),
        dtype=dtype,
        averages=averages,
        about={"model": job.checkpoint.provenance.id, "boundary": layer_map.stages[lowest]},
    )


def _views(
    layers: FrozenLayers, rows: Dataset, training: TrainingConfig, views: int
) -> list[FrozenLayers]:
    """The frozen layers for each view of training rows: plain images, or each augmented anew."""
    if not views:
        return [layers]
    name = training.augmentation
    augment = fit_augmentation(name, layers.encoder, rows)
    return [replace(layers, view=View(n, name, augment)) for n in range(1, views + 1)]


def _compute_each(
    views: Sequence[FrozenLayers], rows: Dataset, cache: CacheConfig, in_memory: bool = False
) -> list[Features]:
    """The activations of rows in each view; an empty list if those of one are not stored."""
    features = []
    for view in views:
        computed = compute_features(view, rows, cache, in_memory)
        if computed is None:
            return []
        features.append(computed)
    return features
