"""A phase whose linear head is solved in closed form, on features that are computed once."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from hf_transfer.config import ProblemType, TrainingConfig
from hf_transfer.data.encode import Encoder
from hf_transfer.frozen.features import Features
from hf_transfer.frozen.phase import cache_facts, compute_head_features
from hf_transfer.frozen.split import UnsplittableError
from hf_transfer.linear_probe.solve import SolvedHead, solve_head
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import find_linear_head
from hf_transfer.strategies.plan import Phase, Plan
from hf_transfer.training.label_scaling import Scale
from hf_transfer.training.losses import balanced_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Encoded rows to learn from and to choose a step by, and the scale of a regression's numbers."""

    train: Dataset
    validation: Dataset | None
    scale: Scale


def solve_phase(
    phase: Phase,
    plan: Plan,
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    splits: Splits,
) -> dict[str, Any] | None:
    """The facts of a phase whose linear head is solved on features computed once; None if there are none."""
    model = checkpoint.model
    try:
        computed = compute_head_features(checkpoint, encoder, training, plan.cache, splits.train)
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
    return {
        "name": phase.name,
        "trainable_parameters": sum(parameter.numel() for parameter in layer.parameters()),
        "epochs": 0.0,
        "steps": 0,
        "best_step": None,
        "seconds": time.perf_counter() - began,
        **cache_facts(computed),
        "history": [],
        "solved": {
            "strength": solved[0].strength,
            "penalty": phase.penalty,
            "cross_validated": solved[0].cross_validated,
        },
        **({"augmentation": training.augmentation} if plan.cache.views else {}),
    }


def _solve(
    computed: Sequence[Features],
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
