"""What a phase does not train is computed once: where its boundary lies, and what it learns above it."""

import logging
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from hf_transfer.config import ProblemType, TrainingConfig
from hf_transfer.data.augmentation import fit_augmentation
from hf_transfer.data.encode import Collate, Encoder
from hf_transfer.frozen.features import Computed, FrozenPart, compute, light_rows, replay_collate
from hf_transfer.frozen.split import Boundary, CheckedSplit, UnsplittableError, split_model
from hf_transfer.linear_probe.solve import SolvedHead, solve_head
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import find_linear_head
from hf_transfer.record import LinearProbeFacts, PhaseFacts
from hf_transfer.strategies.plan import CacheSettings, Phase, Plan
from hf_transfer.training.label_scaling import Scale
from hf_transfer.training.losses import balanced_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Encoded rows to learn from and to choose a step by, and the scale of a regression's numbers."""

    train: Dataset
    validation: Dataset | None
    scale: Scale


@dataclass(frozen=True)
class Frozen:
    """A phase's rows with what lies below its boundary computed; those to learn from once a view of them."""

    split: CheckedSplit
    computed: tuple[Computed, ...]
    train: Dataset
    validation: Dataset | None
    collate: Collate

    def replaying(self) -> AbstractContextManager[None]:
        """The context in which the model takes these rows."""
        return self.split.replaying()


def freeze_below(
    trainable: Collection[str],
    plan: Plan,
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    splits: Splits,
) -> Frozen | None:
    """The rows with all below the lowest stage that trains computed; None where nothing is or can be."""
    stages = checkpoint.layers
    boundary = min(stages.depth_of(name) for name in trainable)
    if (
        boundary < 2 or not plan.cache.on
    ):  # the embeddings alone cost less than reading what they give
        return None
    if training.n_gpu > 1:
        log.warning(
            "the frozen layers run in every epoch: start one process a GPU with accelerate launch"
        )
        return None
    _say_that_pictures_are_plain(training, plan.cache)
    given = [rows for rows in (splits.train, splits.validation) if rows is not None]
    computed: list[list[Computed]] = []
    try:
        part = _part(boundary, checkpoint, encoder, training, plan.cache)
        for rows in given:
            found = (
                _compute_views(part, rows, training, plan.cache)
                if rows is splits.train
                else [compute(part, rows, plan.cache)]
            )
            computed.append([each for each in found if each is not None])
            if len(computed[-1]) < len(found):
                return None
    except UnsplittableError as reason:
        log.warning(
            "the frozen layers below %s run in every epoch: %s", stages.stages[boundary], reason
        )
        return None
    light = [light_rows(rows, number, len(computed[number])) for number, rows in enumerate(given)]
    validation = light[1] if splits.validation is not None else None
    every = tuple(each for views in computed for each in views)
    return Frozen(part.split, every, light[0], validation, replay_collate(encoder, computed))


def solve_phase(
    phase: Phase,
    plan: Plan,
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    splits: Splits,
) -> PhaseFacts | None:
    """The facts of a phase whose linear head is solved on features computed once; None if there are none."""
    model = checkpoint.model
    try:
        computed = read_by_head(checkpoint, encoder, training, plan.cache, splits.train)
    except UnsplittableError as reason:
        log.warning("the head is trained in steps, not solved: %s", reason)
        return None
    began = time.perf_counter()
    layer = model.get_submodule(find_linear_head(model))
    solved: list[Any] = [None]
    if PartialState().is_main_process:
        solved[0] = _solve(computed, checkpoint, phase, training, splits)
    broadcast_object_list(solved)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(solved[0].weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(solved[0].bias))
    head = solved[0]
    return PhaseFacts(
        name=phase.name,
        trainable_parameters=sum(parameter.numel() for parameter in layer.parameters()),
        epochs=0.0,
        steps=0,
        best_step=None,
        seconds=time.perf_counter() - began,
        **cache_facts(computed),
        history=[],
        solved=LinearProbeFacts(head.strength, phase.penalty, head.cross_validated),
        augmentation=training.augmentation if plan.cache.views else None,
    )


def read_by_head(
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    cache: CacheSettings,
    rows: Dataset,
) -> list[Computed]:
    """What a linear head reads of rows, each view of them: "features" (width,). Raises UnsplittableError."""
    _say_that_pictures_are_plain(training, cache)
    part = _part("head", checkpoint, encoder, training, cache)
    return [
        each for each in _compute_views(part, rows, training, cache, keep=True) if each is not None
    ]


def _solve(
    computed: Sequence[Computed],
    checkpoint: Checkpoint,
    phase: Phase,
    training: TrainingConfig,
    splits: Splits,
) -> SolvedHead:
    layer = checkpoint.model.get_submodule(find_linear_head(checkpoint.model))
    labels, outputs = np.asarray(splits.train["label"][:]), len(checkpoint.labels)
    if splits.scale != Scale():
        labels = (labels - splits.scale.offset) / splits.scale.factor
    balanced = training.class_weights == "balanced"
    weights = balanced_weights(labels.tolist(), outputs).numpy() if balanced else None
    views = [each.matrix("features") for each in computed]
    features = np.concatenate(views) if len(views) > 1 else views[0]
    problem_type = cast(ProblemType, checkpoint.model.config.problem_type)
    with_bias, seed = layer.bias is not None, 0
    return solve_head(
        features, labels, problem_type, outputs, with_bias, weights, seed, len(views), phase.penalty
    )


def cache_facts(computed: Sequence[Computed]) -> dict[str, Any]:
    """What the record says of the frozen part of a phase."""
    passes = sum(each.passes for each in computed)
    stored = any(each.nbytes for each in computed)
    return {
        "frozen_passes": passes,
        "cache": "off" if not stored else "miss" if passes else "hit",
        "cached_bytes": sum(each.nbytes for each in computed),
        "frozen_seconds": sum(each.seconds for each in computed),
    }


def _say_that_pictures_are_plain(training: TrainingConfig, cache: CacheSettings) -> None:
    if training.augmentation != "none" and not cache.views:
        log.warning(
            "--augmentation %s changes nothing where what is frozen is computed once: see --cached_views",
            training.augmentation,
        )


def _compute_views(
    part: FrozenPart,
    rows: Dataset,
    training: TrainingConfig,
    cache: CacheSettings,
    keep: bool = False,
) -> list[Computed | None]:
    """What there is of each view to train on: of the rows as they are, or of as many augmented ones as asked."""
    if not cache.views:
        return [compute(part, rows, cache, keep)]
    part = replace(part, augment=fit_augmentation(training.augmentation, part.encoder, rows))
    return [
        compute(replace(part, view=number), rows, cache, keep)
        for number in range(1, cache.views + 1)
    ]


def _part(
    boundary: Boundary,
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    cache: CacheSettings,
) -> FrozenPart:
    model, stages = checkpoint.model.eval(), checkpoint.layers
    first = len(stages.stages) - 1 if boundary == "head" else boundary
    above = frozenset(
        name
        for name, depth in stages.depths.items()
        if depth >= first and name not in checkpoint.fixed
    )
    about = {"model": checkpoint.provenance.id, "boundary": stages.stages[first]}
    model.to(training.device)
    return FrozenPart(
        split_model(model, boundary),
        model,
        str(boundary),
        above,
        encoder,
        batch_size=training.per_device_eval_batch_size,
        workers=training.dataloader_num_workers,
        quiet=bool(training.disable_tqdm),
        bfloat16=cache.dtype == "bfloat16",
        augmentation=training.augmentation,
        about=about,
    )
