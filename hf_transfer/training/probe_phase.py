"""A phase whose linear head is solved in closed form, on features that are computed once."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_transfer.data.groups import groups_of
from hf_transfer.data.token_labels import flat_labels
from hf_transfer.frozen.features import Features
from hf_transfer.frozen.phase import cache_facts, compute_head_features
from hf_transfer.frozen.split import UnsplittableError
from hf_transfer.linear_probe.folds import folds_of_groups
from hf_transfer.linear_probe.solve import ProbeData, ProbeOptions, SolvedHead, solve_head
from hf_transfer.models.thresholds import choose_thresholds, keep_thresholds
from hf_transfer.record import LinearProbeFacts, PhaseFacts
from hf_transfer.strategies.plan import Phase
from hf_transfer.training.label_scaling import LabelScale
from hf_transfer.training.losses import balanced_weights
from hf_transfer.training.plan_run import PlanRun

log = logging.getLogger(__name__)


def run_probe_phase(number: int, run: PlanRun) -> PhaseFacts | None:
    """Solve the head in place; the phase's facts, or None where it must be trained in steps."""
    phase = run.plan.phases[number]
    plan = run.plan
    # Weights that have learned already are this run's alone: their features serve no other run.
    cache = run.cache if number == 0 else replace(run.cache, cache_frozen=False)
    try:
        features = compute_head_features(
            run.job, run.train, cache, plan.frozen_dtype, plan.cached_views
        )
    except UnsplittableError as reason:
        log.warning("the head is trained in steps, not solved: %s", reason)
        return None
    began = time.perf_counter()
    layer = run.job.model.get_submodule(run.job.checkpoint.linear_head)
    on_main: list[Any] = [None]
    if PartialState().is_main_process:
        on_main = [_solve(features, phase, run, layer.bias is not None)]
    (solved,) = broadcast_object_list(on_main)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(solved.weight))
        if solved.bias is not None:
            layer.bias.copy_(torch.from_numpy(solved.bias))
    is_tuned = run.job.training.thresholds == "tuned"
    if is_tuned and run.validation is None and solved.cross_validated:
        labels = np.asarray(run.train["label"][:])
        keep_thresholds(run.job.model.config, choose_thresholds(labels, solved.out_of_fold))
    return PhaseFacts(
        name=phase.name,
        trainable_parameters=sum(parameter.numel() for parameter in layer.parameters()),
        epochs=0.0,
        steps=0,
        best_step=None,
        history=[],
        seconds=time.perf_counter() - began,
        solved=LinearProbeFacts(solved.l2, phase.penalty, solved.cross_validated),
        augmentation=run.job.training.augmentation if plan.cached_views else None,
        **cache_facts(features),
    )


def _solve(views: Sequence[Features], phase: Phase, run: PlanRun, with_bias: bool) -> SolvedHead:
    rows = run.train["label"][:]
    labels = flat_labels(rows)
    outputs = len(run.job.checkpoint.labels)
    if run.scale != LabelScale():
        labels = (labels - run.scale.offset) / run.scale.factor
    weights = None
    if run.job.training.class_weights != "none":  # equally often, many times, weighs the same
        weights = balanced_weights(labels, outputs).numpy()
    fold_of_row = None
    groups = _groups(run)
    if run.job.data.task.labels_words:
        matrices = [view.of_words("features", rows) for view in views]
        # The words of a sentence are not independent.
        of_rows = run.train["id"][:] if groups is None else groups
        words = np.repeat(of_rows, [len(flat_labels([row])) for row in rows])
        fold_of_row = folds_of_groups(words, seed=0)
        groups = None
    else:
        matrices = [view.matrix("features") for view in views]
    features = np.concatenate(matrices) if len(views) > 1 else matrices[0]
    data = ProbeData(features, labels, run.job.data.problem_type, outputs, len(views))
    options = ProbeOptions(
        with_bias, weights, penalty=phase.penalty, fold_of_row=fold_of_row, groups=groups
    )
    return solve_head(data, options)


def _groups(run: PlanRun) -> np.ndarray | None:
    """The group of each encoded row, which may be a window of a row, or None."""
    rows = run.job.data.train
    groups = groups_of(rows)
    if groups is None:
        return None
    group_of_id = dict(zip(rows["id"][:], groups, strict=True))
    return np.array(list(map(group_of_id.__getitem__, run.train["id"][:])))
