"""What the head of a text encoder reads: its own pooling or the mean, requested or by evidence."""

import logging
from dataclasses import dataclass, replace

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.data.groups import groups_of
from hf_transfer.data.labels import LABEL_KINDS
from hf_transfer.data.splits import stratified_sample
from hf_transfer.evaluation.metrics import SCORING
from hf_transfer.frozen.phase import compute_head_features
from hf_transfer.frozen.split import UnsplittableError
from hf_transfer.job import Job
from hf_transfer.linear_probe.judge import held_out_loss
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.pooling import UnpoolableError, mean_pooled
from hf_transfer.strategies.make_plan import frozen_dtype
from hf_transfer.strategies.plan import Pooling

log = logging.getLogger(__name__)

# Rows that a pooling is judged by, the more of both: more would cost as much as training.
ROWS = 500
ROWS_PER_CLASS = 4

READS_MEAN = "the head reads the mean over all tokens"
READS_OWN = "the head reads what the class pools"


@dataclass(frozen=True)
class PoolingChoice:
    """A pooling, the checkpoint that has it, and the reasons.

    `is_open` means that both poolings are possible and evidence decides.
    """

    pooling: Pooling
    checkpoint: Checkpoint
    reasons: tuple[str, ...] = ()
    is_open: bool = False


def pooling_without_evidence(transfer: TransferConfig, checkpoint: Checkpoint) -> PoolingChoice:
    """The pooling that flags, checkpoint and architecture decide; `is_open` where they do not."""
    own = PoolingChoice("own", checkpoint)
    if checkpoint.reads_mean:
        return PoolingChoice("mean", checkpoint, (f"{READS_MEAN}, as it did in the checkpoint",))
    is_auto = transfer.pooling == "auto"
    if transfer.pooling == "own" or (is_auto and checkpoint.model.main_input_name != "input_ids"):
        return own  # images have no tokens: no reason is needed
    try:
        if is_auto:
            _require_open(transfer)
        pooled = mean_pooled(checkpoint)
    except UnpoolableError as reason:
        if not is_auto:
            log.warning("--pooling mean: %s; its own pooling stays", reason)
        return replace(own, reasons=(f"{READS_OWN}: {reason}",))
    if transfer.pooling == "mean":
        return PoolingChoice("mean", pooled, (f"{READS_MEAN}, as requested",))
    return replace(own, is_open=True)


def _require_open(transfer: TransferConfig) -> None:
    """Raise UnpoolableError where --pooling auto does not try the mean."""
    if transfer.strategy == "scratch":
        raise UnpoolableError("from scratch the class is taken as it is")
    if transfer.keep_adapter:
        raise UnpoolableError("the base model of an adapter has no layer for the mean")


def choose_pooling(transfer: TransferConfig, job: Job, cache: CacheConfig) -> PoolingChoice:
    """The pooling of a run; where it is open, the one with the smaller held-out probe loss."""
    choice = pooling_without_evidence(transfer, job.checkpoint)
    if not choice.is_open:
        return choice
    pooled = replace(job, checkpoint=mean_pooled(job.checkpoint))
    try:
        own = _probe_loss(job, transfer, cache)
        mean = _probe_loss(pooled, transfer, cache)
    except UnsplittableError as reason:
        why = f"{READS_OWN}: the mean could not be tried, {reason}"
        return PoolingChoice("own", job.checkpoint, (why,))
    figures = (
        f"the held-out loss of a linear probe is {mean:.3g} with the mean, {own:.3g} with the "
        "class's own pooling"
    )
    if own == mean:
        figures = (
            "nothing could be held out to judge it by; Reimers and Gurevych 2019 "
            "(arXiv 1908.10084) found it better"
        )
    if own < mean:
        return PoolingChoice("own", job.checkpoint, (f"{READS_OWN}: {figures}",))
    return PoolingChoice("mean", pooled.checkpoint, (f"{READS_MEAN}: {figures}",))


def _probe_loss(job: Job, transfer: TransferConfig, cache: CacheConfig) -> float:
    """The mean held-out loss of a linear probe on what the head reads, by cross-validation."""
    problem_type = job.data.problem_type
    rows = job.data.train
    outputs = len(job.data.labels)
    limit = max(ROWS, ROWS_PER_CLASS * outputs)
    if len(rows) > limit:
        strata = LABEL_KINDS[problem_type].strata(rows["label"][:])
        rows = rows.select(stratified_sample(strata, limit, job.training.seed))
    dtype = frozen_dtype(transfer, job.training)
    (computed,) = compute_head_features(job, job.encoder.rows(rows), cache, dtype)
    loss = [0.0]
    if PartialState().is_main_process:
        labels = np.asarray(rows["label"][:])
        features = computed.matrix("features")
        score = SCORING[problem_type].loss
        groups = groups_of(rows)
        loss = [held_out_loss(features, labels, problem_type, outputs, score, groups)]
    broadcast_object_list(loss)
    return loss[0]
