"""Trials for `--strategy auto`: plans on held-out rows of the training split, within a budget."""

import copy
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.transfer import Strategy, TransferConfig
from hf_transfer.data.groups import groups_of
from hf_transfer.data.labels import find_label_kind
from hf_transfer.data.splits import assign_folds, deal_groups
from hf_transfer.data.token_labels import flat_labels
from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import SCORING
from hf_transfer.evaluation.predict import predict
from hf_transfer.job import Job
from hf_transfer.models.flops import stage_flops
from hf_transfer.record import Trial, from_json
from hf_transfer.sealed import temporary_path
from hf_transfer.store.entries import resolve_cache_dir
from hf_transfer.strategies import auto
from hf_transfer.strategies.cost import Network, plan_cost
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.strategies.plan import Plan
from hf_transfer.studies.quiet import only_warnings
from hf_transfer.training.engine import require_steps, train
from hf_transfer.training.epochs import with_passes_as_epochs

SAMPLE = 8  # rows by which the cost of a plan is measured


@dataclass(frozen=True)
class Selection:
    """A strategy, why it is used, the trials as facts, and the seconds that they took."""

    strategy: str
    reasons: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    seconds: float = 0.0

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "Selection":
        """The selection that was saved as JSON."""
        trials = tuple(map(partial(from_json, Trial), facts["trials"]))
        return cls(facts["strategy"], tuple(facts["reasons"]), trials, facts["seconds"])


@dataclass(frozen=True)
class _Study:
    """What the trials share: a job, its flags, and the fold of each training row."""

    transfer: TransferConfig
    job: Job
    cache: CacheConfig
    fold: np.ndarray

    def plan(self, strategy: str, job: Job) -> Plan:
        return make_plan(replace(self.transfer, strategy=cast(Strategy, strategy)), job)


def select_strategy(transfer: TransferConfig, job: Job, cache: CacheConfig) -> Selection:
    """The strategy that the evidence of trials names; validation and test rows are never read."""
    kind = find_label_kind(job.data.problem_type, job.data.task)
    strata = np.asarray(kind.strata(job.labels))
    if job.data.problem_type == "regression" and len(strata) < auto.MIN_EXAMPLES_PER_CLASS * 10:
        strata = np.zeros(len(strata))  # numbers, unlike classes, can be held out all the same
    _, which, counts = np.unique(strata, return_inverse=True, return_counts=True)
    if 2 * (counts[which] >= auto.MIN_EXAMPLES_PER_CLASS).sum() < len(strata):
        reason = (
            f"{auto.DEFAULT_STRATEGY}, since most examples are of labels with fewer than "
            f"{auto.MIN_EXAMPLES_PER_CLASS}, too few for trials"
        )
        return Selection(auto.DEFAULT_STRATEGY, (reason,))
    groups = groups_of(job.data.train)
    if groups is not None and len(set(groups)) < auto.FOLDS:
        reason = f"{auto.DEFAULT_STRATEGY}, since {len(set(groups))} groups are too few for trials"
        return Selection(auto.DEFAULT_STRATEGY, (reason,))
    study = _Study(transfer, job, cache, _folds(strata, groups, job.training.seed))
    costs = _costs(study)
    is_quiet = bool(job.training.disable_tqdm) or not PartialState().is_main_process
    with (
        tqdm(total=auto.FOLDS * len(costs), desc="trials", disable=is_quiet) as bar,
        _cache_of_trials(cache) as cache_of_trials,
    ):
        attempt = partial(_try_plan, replace(study, cache=cache_of_trials))
        trials, left_out = run_trials(costs, transfer.auto_budget, attempt, bar.update)
    if not trials:
        return Selection(auto.DEFAULT_STRATEGY, left_out)
    reasons = (*auto.selection_reasons(trials), *left_out)
    return Selection(auto.select_best(trials).strategy, reasons, auto.trial_facts(trials))


def _folds(strata: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    if groups is None:
        return assign_folds(strata, auto.FOLDS, seed)
    return deal_groups(strata, groups, [1 / auto.FOLDS] * auto.FOLDS, seed)


def run_trials(
    costs: Mapping[str, float],
    budget: float,
    attempt: Callable[[str, int], auto.TrialScores],
    advance: Callable[[int], Any] = lambda folds: None,
) -> tuple[list[auto.TrialScores], tuple[str, ...]]:
    """The trials, and why some were left out; none without budget for one of the default.

    `costs` has the cost of a fold by strategy, in order; `attempt` takes strategy and fold. Each is
    tried on fold after fold, until it is all but settled whether it is better than the best before.
    `advance` is told how many folds are done. Raises UserError if every trial fails.
    """
    first = next(iter(costs))
    if costs[first] > budget:
        return [], (f"{first}, since --auto_budget {budget:g} leaves no time for trials",)
    trials: list[auto.TrialScores] = []
    left_out: list[str] = []
    failures: list[UserError] = []
    left = budget
    for name, cost in costs.items():
        trial: auto.TrialScores | None = None
        done = 0
        for number in range(auto.FOLDS):
            if trial and trials and _is_settled(trial, auto.select_best(trials)):
                break
            if cost > left:
                more = "more " if trial else ""
                left_out.append(f"--auto_budget {budget:g} left no time for {more}trials of {name}")
                break
            left -= cost
            try:
                scores = attempt(name, number)
            except UserError as error:
                trial = None
                failures.append(error)
                left_out.append(f"the trial of {name} failed: {error.message}")
                break
            trial = trial + scores if trial else scores
            done += 1
            advance(1)
        advance(auto.FOLDS - done)  # folds that need not be tried are done, too
        trials += [trial] if trial else []
    if not trials:
        raise failures[0]
    return trials, tuple(left_out)


def _is_settled(trial: auto.TrialScores, best: auto.TrialScores) -> bool:
    """Whether nothing is left to compare, or hardly a chance to be better than the best."""
    gain = auto.paired_gain(trial, best)
    share = gain.n / len(best.rows)
    return share == 1 or gain.predictive_power(share) < auto.MIN_PREDICTIVE_POWER


def _try_plan(study: _Study, strategy: str, number: int) -> auto.TrialScores:
    """The scores of a strategy on the rows of a fold when it learns from all others.

    Raises UserError where it cannot be run.
    """
    began = time.perf_counter()
    job = study.job
    checkpoint = replace(job.checkpoint, model=copy.deepcopy(job.checkpoint.model))
    with only_warnings():
        trial_job = replace(_without_fold(study, number), checkpoint=checkpoint)
        plan = study.plan(strategy, trial_job)
        require_steps(plan, job.training)
        trained = train(plan, trial_job, study.cache, is_trial=True)
        quiet = job.training.changed(report_to=[], disable_tqdm=True)
        predictions = predict(trained.predictor, trial_job.data.test, quiet)
    if not np.isfinite(predictions.logits).all():
        raise UserError(
            f"{strategy} gives logits that are not finite", "try a smaller --learning_rate"
        )
    scores = SCORING[job.data.problem_type].row_scores(
        predictions.labels, predictions.outputs, flat_labels(job.labels)
    )
    held_out = np.flatnonzero(study.fold == number)
    seconds = time.perf_counter() - began
    return auto.TrialScores(strategy, held_out, predictions.mean_of_rows(scores), seconds)


def _without_fold(study: _Study, number: int) -> Job:
    rows = study.job.data.train
    splits = {
        "train": rows.select(np.flatnonzero(study.fold != number)),
        "test": rows.select(np.flatnonzero(study.fold == number)),
    }
    return replace(study.job, data=replace(study.job.data, splits=splits))


def _costs(study: _Study) -> dict[str, float]:
    """Strategy, in the order of trials -> cost of a trial, in full fine-tunings on all rows."""
    job = study.job
    rows = job.data.train
    network = measure_network(job, job.encoder.rows(rows.select(range(min(SAMPLE, len(rows))))))

    def cost(strategy: str, job: Job) -> float:
        labels = job.labels
        plan = with_passes_as_epochs(study.plan(strategy, job), labels, job.training)
        return len(labels) * plan_cost(plan, network, study.cache.cache_frozen)

    names = [auto.DEFAULT_STRATEGY, *auto.CANDIDATES]
    is_single_label = job.data.problem_type == "single_label_classification"
    has_classes = is_single_label and not job.data.task.labels_words
    if "contrastive" in names and not (has_classes and job.checkpoint.linear_head):
        names.remove("contrastive")
    trial_job = _without_fold(study, 0)
    with only_warnings():
        full = cost("full", job)
        return {name: cost(name, trial_job) / full for name in names}


def measure_network(job: Job, rows: Dataset) -> Network:
    """The stages of the job's network and the operations of each in a pass of encoded rows."""
    checkpoint = job.checkpoint
    model = checkpoint.model.eval().to(job.training.device)
    inputs = job.encoder.batch(list(rows))
    inputs.pop("labels")
    on_device = {name: tensor.to(job.training.device) for name, tensor in inputs.items()}
    flops = stage_flops(model, on_device, checkpoint.layers)
    return Network(checkpoint.layers, flops, checkpoint.fixed)


@contextmanager
def _cache_of_trials(cache: CacheConfig) -> Iterator[CacheConfig]:
    """A store within the store, the same in all processes: no other run has use for its rows."""
    folders = [str(temporary_path(resolve_cache_dir(cache.cache_dir) / "trials"))]
    broadcast_object_list(folders)
    try:
        yield replace(cache, cache_dir=folders[0])
        PartialState().wait_for_everyone()
    finally:
        shutil.rmtree(folders[0], ignore_errors=True)
