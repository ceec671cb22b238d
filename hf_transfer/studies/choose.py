"""Gathers the evidence for `auto` and for the pooling; a named strategy passes straight through."""

import copy
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_transfer.config import Strategy, TrainingConfig, TransferConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import Data
from hf_transfer.data.splits import stratified_sample
from hf_transfer.evaluation.predict import predict
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.pooling import UnpoolableError, with_mean_pooling
from hf_transfer.strategies import make_plan
from hf_transfer.strategies.auto import CANDIDATES, FOLDS, SIMPLEST, Trial, decide, is_hopeless
from hf_transfer.strategies.plan import Plan, Pooling
from hf_transfer.training.engine import run_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """What a plan is chosen for."""

    config: TransferConfig
    checkpoint: Checkpoint
    data: Data
    training: TrainingConfig
    max_length: int | None = None


def try_plan(strategy: str, given: Given, fold: np.ndarray, number: int) -> Trial:
    """How a strategy does on the rows of a fold, learned from all others."""
    began = time.perf_counter()
    kept, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
    train = given.data.train
    data = replace(given.data, splits={"train": train.select(kept), "test": train.select(held)})
    checkpoint = replace(given.checkpoint, model=copy.deepcopy(given.checkpoint.model))
    with _apart() as folder, _silence():
        config = replace(given.config, strategy=cast(Strategy, strategy), cache_dir=folder)
        plan = make_plan(config, checkpoint, data, given.training)
        predictions = predict(run_plan(plan, checkpoint, data, given.training, given.max_length), data.test)
    answers, labels = predictions.answers, predictions.labels
    scores = (answers == labels).astype(float)
    if TRACE is not None:
        TRACE.append((strategy, number, held, predictions.logits, labels))
    return Trial(strategy, held, scores, time.perf_counter() - began)


TRACE: Any = None


@contextmanager
def _apart() -> Iterator[str]:
    """A folder for what the trials compute, the same in all processes: no other run could use it."""
    with tempfile.TemporaryDirectory() as own:
        folders = [own]
        broadcast_object_list(folders)
        yield folders[0]
        PartialState().wait_for_everyone()


@contextmanager
def _silence() -> Iterator[None]:
    """Within the context only warnings are logged: the plans that are tried are not the one that is run."""
    logger = logging.getLogger("hf_transfer")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)


def choose_plan(
    config: TransferConfig, checkpoint: Checkpoint, data: Data, training: TrainingConfig, max_length: int | None = None
) -> Plan:
    """The plan of the strategy that the user names, or of the one that the evidence names."""
    if config.pooling == "mean":
        checkpoint = with_mean_pooling(checkpoint)
    pooling = "mean" if config.pooling == "mean" else "own"
    return replace(make_plan(config, checkpoint, data, training), pooling=pooling)
