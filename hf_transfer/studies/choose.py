"""choose_plan: the plan of the strategy that is named, or of the one that evidence names."""

import time
from dataclasses import asdict, replace
from typing import cast

from accelerate.utils import broadcast_object_list

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import Strategy, TransferConfig
from hf_transfer.config.validate import unused_flags
from hf_transfer.data.sources import Data
from hf_transfer.job import Job, make_job
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.resume.run_folder import load_choice, release, save_choice
from hf_transfer.resume.run_spec import describe_inputs
from hf_transfer.strategies.make_plan import log_unused_flags, make_plan, why_in_steps
from hf_transfer.strategies.plan import Choice, Plan
from hf_transfer.studies.choose_pooling import choose_pooling
from hf_transfer.studies.trials import Selection, select_strategy
from hf_transfer.training.engine import require_runnable


def choose_plan(
    transfer: TransferConfig,
    checkpoint: Checkpoint,
    data: Data,
    training: TrainingConfig,
    cache: CacheConfig | None = None,
) -> Choice:
    """The plan of a run, with its reasons and the trials behind it.

    `--pooling auto` compares linear probes on both poolings, `--strategy auto` tries plans on
    held-out rows of the training split. Validation and test rows are never read. Raises UserError
    for what would stop the run.
    """
    began = time.perf_counter()
    cache = cache or CacheConfig()
    job = make_job(checkpoint, data, training, cache)
    require_runnable(job)
    pooling = choose_pooling(transfer, job, cache)
    job = replace(job, checkpoint=pooling.checkpoint)
    seconds = time.perf_counter() - began
    selection = Selection(transfer.strategy, (explain_strategy(transfer),))
    if transfer.strategy == "auto":
        selection = _select_once(transfer, job, cache)
    named = replace(transfer, strategy=cast(Strategy, selection.strategy))
    plan = make_plan(named, job, pooling.pooling)
    log_unused_flags(plan, job.training)
    reasons = [*selection.reasons, *explain_plan(plan, job), *pooling.reasons]
    for name, users in unused_flags([transfer, training], [plan.strategy]).items():
        if users != ("auto",):  # a flag for another strategy than the one that auto chose
            reasons.append(f"--{name} is not used by {plan.strategy}")
    seconds += selection.seconds
    return Choice(plan, transfer.strategy, tuple(reasons), selection.trials, seconds)


def explain_strategy(transfer: TransferConfig) -> str:
    """Why a strategy that is not chosen by evidence is used."""
    is_default = transfer.strategy == TransferConfig.strategy
    return f"the strategy is {transfer.strategy}, {'the default' if is_default else 'as requested'}"


def explain_plan(plan: Plan, job: Job) -> tuple[str, ...]:
    """Why a plan is not what its strategy's name says."""
    reason = why_in_steps(job)
    trains_head = any(phase.trainable == ("head",) for phase in plan.phases)
    return (
        (f"the head is trained in steps, not solved: {reason}",) if reason and trains_head else ()
    )


def _select_once(transfer: TransferConfig, job: Job, cache: CacheConfig) -> Selection:
    spec = {"transfer": asdict(transfer), **describe_inputs(job)}
    kept = load_choice(job.training, spec)
    if kept:
        return Selection.from_json(kept)
    began = time.perf_counter()
    try:
        selection = select_strategy(transfer, job, cache)
    except BaseException:
        release(job.training)
        raise
    found = [replace(selection, seconds=time.perf_counter() - began)]
    broadcast_object_list(found)
    save_choice(job.training, spec, found[0])
    return found[0]
