"""Gathers the evidence for `auto` and for the pooling; what the user named passes straight through."""

import copy
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from hf_transfer.config import Strategy, TrainingConfig, TransferConfig, misplaced
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.labels import TARGETS
from hf_transfer.data.sources import Data
from hf_transfer.data.splits import assign_folds, stratified_sample
from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import READINGS
from hf_transfer.evaluation.predict import predict
from hf_transfer.frozen.split import UnsplittableError
from hf_transfer.linear_probe.solve import solve_head
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.flops import stage_flops
from hf_transfer.models.head import find_linear_head
from hf_transfer.models.pooling import UnpoolableError, with_mean_pooling
from hf_transfer.resume.run_folder import load_choice, release, save_choice
from hf_transfer.resume.run_spec import describe_inputs
from hf_transfer.sealed import temporary_path
from hf_transfer.store.entries import resolve_cache_dir
from hf_transfer.strategies.auto import (
    CANDIDATES,
    FEWEST_A_CLASS,
    FIRST,
    FOLDS,
    LEAST_CHANCE,
    Trial,
    as_facts,
    explain,
    find_best,
    find_gain,
)
from hf_transfer.strategies.cost import plan_cost
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.strategies.plan import Plan, Pooling
from hf_transfer.studies.quiet import only_warnings
from hf_transfer.training.engine import require_runnable, run_plan
from hf_transfer.training.epochs import in_passes
from hf_transfer.training.probe_phase import read_by_head

log = logging.getLogger(__name__)

ROWS, ROWS_A_CLASS = (
    500,
    4,
)  # that a pooling is judged by, the more of both: more would cost as much as to train
SAMPLE = 8  # rows by which the cost of a plan is measured


@dataclass(frozen=True)
class Asked:
    """What a plan is chosen for."""

    config: TransferConfig
    checkpoint: Checkpoint
    data: Data
    training: TrainingConfig
    max_length: int | None = None

    def plan(self, strategy: str) -> Plan:
        """The plan of a strategy by its name."""
        config = replace(self.config, strategy=cast(Strategy, strategy))
        return make_plan(config, self.checkpoint, self.data, self.training)


def choose_plan(
    config: TransferConfig,
    checkpoint: Checkpoint,
    data: Data,
    training: TrainingConfig,
    max_length: int | None = None,
) -> Plan:
    """The plan of the strategy that the user names, or of the one that the evidence names.

    `--pooling auto` solves the head on both poolings, `--strategy auto` tries plans on held-out rows of the training
    split. Validation and test rows are never looked at.
    """
    began = time.perf_counter()
    require_runnable(None, checkpoint, data, training)
    asked, pooling, why_pooling = _choose_pooling(
        Asked(config, checkpoint, data, training, max_length)
    )
    pooled = time.perf_counter() - began
    choice = _choose_once(asked) if config.strategy == "auto" else _as_asked(config.strategy)
    unused = [
        flag
        for flag, fitting in misplaced(config, training, [choice.strategy]).items()
        if fitting != ("auto",)
    ]
    plan = asked.plan(choice.strategy)
    return replace(
        plan,
        requested=config.strategy,
        pooling=pooling,
        reasons=(
            *choice.reasons,
            *plan.reasons,
            *why_pooling,
            *(f"--{flag} plays no part in {choice.strategy}" for flag in unused),
        ),
        evidence=choice.evidence,
        seconds=pooled + choice.seconds,
    )


# --- the pooling ---


def pool_as_asked(
    config: TransferConfig, checkpoint: Checkpoint
) -> tuple[Checkpoint, Pooling, tuple[str, ...]]:
    """The checkpoint as `--pooling` wants it where that is possible, else as it is, what its head reads, and why."""
    if checkpoint.reads_mean:
        return (
            checkpoint,
            "mean",
            ("the head reads the mean over all tokens, as it did in the checkpoint",),
        )
    if config.pooling == "mean":
        try:
            return (
                with_mean_pooling(checkpoint),
                "mean",
                ("the head reads the mean over all tokens, as was asked",),
            )
        except UnpoolableError as reason:
            log.warning("--pooling mean: %s; its own pooling stays", reason)
            return checkpoint, "own", (f"the head reads what the class pools by itself: {reason}",)
    return checkpoint, "own", ()


def _choose_pooling(asked: Asked) -> tuple[Asked, Pooling, tuple[str, ...]]:
    """What the plan is for with the pooling that is used, which one that is, and why."""
    config = asked.config
    if config.pooling != "auto" or asked.checkpoint.reads_mean:
        checkpoint, pooling, reasons = pool_as_asked(config, asked.checkpoint)
        return replace(asked, checkpoint=checkpoint), pooling, reasons
    if config.strategy == "scratch" or config.keep_adapter or not asked.checkpoint.new_parameters:
        return asked, "own", ()
    try:
        pooled = replace(asked, checkpoint=with_mean_pooling(asked.checkpoint))
    except UnpoolableError as reason:
        # What reads pictures has no tokens to take the mean of: that goes without saying.
        said = asked.checkpoint.model.main_input_name == "input_ids"
        return (
            asked,
            "own",
            (f"the head reads what the class pools by itself: {reason}",) if said else (),
        )
    try:
        own, mean = (_judge_pooling(each) for each in (asked, pooled))
    except UnsplittableError as reason:
        return (
            asked,
            "own",
            (
                f"the head reads what the class pools by itself: the mean could not be tried, {reason}",
            ),
        )
    figures = f"the held-out loss of a solved head is {mean:.3g} with the mean, {own:.3g} with the class's own pooling"
    if own == mean:  # nothing could be held out
        figures = "nothing could be held out to judge it by; Reimers and Gurevych 2019 (arXiv 1908.10084) found it better"
    if own < mean:
        return asked, "own", (f"the head reads what the class pools by itself: {figures}",)
    return pooled, "mean", (f"the head reads the mean over all tokens: {figures}",)


def _judge_pooling(asked: Asked) -> float:
    """The mean held-out loss of a head that is solved on what it reads, by cross-validation."""
    rows, checkpoint = asked.data.train, asked.checkpoint
    target = TARGETS[asked.data.problem_type]
    most = max(ROWS, ROWS_A_CLASS * len(asked.data.labels))
    if len(rows) > most:
        rows = rows.select(
            stratified_sample(target.strata(rows["label"][:]), most, asked.training.seed)
        )
    encoder = make_encoder(
        checkpoint.task, checkpoint.processor, checkpoint.model.config, asked.max_length
    )
    with (
        only_warnings()
    ):  # which flags play no part where a head is solved is no news of the run's own plan
        cache = asked.plan("head").cache
    (computed,) = read_by_head(
        checkpoint, encoder, asked.training, replace(cache, views=0), encoder.rows(rows)
    )
    loss = [0.0]
    if PartialState().is_main_process:
        labels, problem_type = np.asarray(rows["label"][:]), asked.data.problem_type
        solved = solve_head(
            computed.matrix("features"), labels, problem_type, len(asked.data.labels)
        )
        outputs = solved.out_of_fold[:, 0] if problem_type == "regression" else solved.out_of_fold
        loss = [READINGS[problem_type].loss(labels, outputs)]
    broadcast_object_list(loss)
    return loss[0]


# --- the strategy ---


@dataclass(frozen=True)
class Choice:
    """A strategy, why it is used, the trials that speak for it, as facts, and the seconds that they took."""

    strategy: str
    reasons: tuple[str, ...]
    evidence: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0


def _as_asked(strategy: str) -> Choice:
    return Choice(strategy, (f"the strategy {strategy} was asked for by name",))


def _choose_once(asked: Asked) -> Choice:
    """The strategy that the evidence names; gathered once for a run that is started again."""
    start = describe_inputs(asked.checkpoint, asked.data, asked.training, asked.max_length)
    of = {"transfer": asdict(asked.config), **start}
    kept = load_choice(asked.training, of)
    if kept:
        return Choice(
            kept["strategy"], tuple(kept["reasons"]), tuple(kept["evidence"]), kept["seconds"]
        )
    began = time.perf_counter()
    try:
        choices = [replace(_choose_strategy(asked), seconds=time.perf_counter() - began)]
    except BaseException:
        release(asked.training)
        raise
    broadcast_object_list(choices)
    (choice,) = choices
    save_choice(asked.training, of, choice)
    return choice


def _choose_strategy(asked: Asked) -> Choice:
    """The strategy that the evidence names."""
    labels = asked.data.train["label"][:]
    strata = np.asarray(TARGETS[asked.data.problem_type].strata(labels))
    if asked.data.problem_type == "regression" and len(labels) < FEWEST_A_CLASS * 10:
        strata = np.zeros(len(labels))  # numbers, unlike classes, can be held out all the same
    _, which, counts = np.unique(strata, return_inverse=True, return_counts=True)
    if 2 * (counts[which] >= FEWEST_A_CLASS).sum() < len(strata):
        return Choice(
            FIRST,
            (
                f"{FIRST}, since most examples are of labels with fewer than {FEWEST_A_CLASS}, too few for trials",
            ),
        )
    trials, left_out = _try_all(asked, assign_folds(strata, FOLDS, asked.training.seed))
    if not trials:
        return Choice(FIRST, left_out)
    return Choice(
        find_best(trials).strategy, (*explain(trials), *left_out), tuple(as_facts(trials))
    )


def _try_all(asked: Asked, fold: np.ndarray) -> tuple[list[Trial], tuple[str, ...]]:
    """The trials, and why some were left out; none where there is no time for one of the first plan.

    Fold after fold, until it is all but settled whether a plan is better than the best before it. Raises UserError if
    every trial fails.
    """
    budget = left = asked.config.auto_budget
    costs, trials, left_out, failed = (
        _costs(asked, fold),
        list[Trial](),
        list[str](),
        list[UserError](),
    )
    if costs[FIRST] > budget:
        return [], (f"{FIRST}, since --auto_budget {budget:g} leaves no time for trials",)
    bar = tqdm(total=FOLDS * len(costs), desc="trials", disable=_is_quiet(asked))
    with bar, _folder_for_trials(asked.config) as folder:
        asked = replace(asked, config=replace(asked.config, cache_dir=folder))
        for place, (name, cost) in enumerate(costs.items(), start=1):
            done: Trial | None = None
            for number in range(FOLDS):
                if done and trials and _is_settled(done, find_best(trials)):
                    break
                if cost > left:
                    left_out.append(
                        f"--auto_budget {budget:g} left no time for {'more ' * bool(done)}trials of {name}"
                    )
                    break
                left -= cost
                try:
                    trial = _try_plan(name, asked, fold, number)
                except UserError as error:
                    done = None
                    failed.append(error)
                    left_out.append(f"the trial of {name} failed: {error.message}")
                    break
                done = done + trial if done else trial
                bar.update()
            bar.update(FOLDS * place - bar.n)  # what need not be tried is done, too
            trials += [done] if done else []
    if not trials:
        raise failed[0]
    return trials, tuple(left_out)


def _is_settled(trial: Trial, best: Trial) -> bool:
    """Whether there is nothing left to compare, or hardly a chance to be better than the best before it."""
    gain = find_gain(trial, best)
    return gain.n == len(best.rows) or gain.chance(share=gain.n / len(best.rows)) < LEAST_CHANCE


def _try_plan(strategy: str, asked: Asked, fold: np.ndarray, number: int) -> Trial:
    """How a strategy does on the rows of a fold when it learns from all others. Raises UserError where it cannot."""
    began = time.perf_counter()
    held = np.flatnonzero(fold == number)
    checkpoint = replace(asked.checkpoint, model=copy.deepcopy(asked.checkpoint.model))
    with only_warnings():
        trial = replace(_without(asked, fold, number), checkpoint=checkpoint)
        trained = run_plan(
            trial.plan(strategy), checkpoint, trial.data, trial.training, asked.max_length
        )
        predictions = predict(trained, trial.data.test)
    if not np.isfinite(predictions.logits).all():
        raise UserError(f"{strategy} answers what is not finite", "try a smaller --learning_rate")
    every = np.asarray(asked.data.train["label"][:])
    scores = READINGS[asked.data.problem_type].right(predictions.labels, predictions.outputs, every)
    return Trial(strategy, held, scores, time.perf_counter() - began)


def _without(asked: Asked, fold: np.ndarray, number: int) -> Asked:
    """The same with the rows of a fold to judge by and all others to learn from; the test split is not among them."""
    rows, held = asked.data.train, np.flatnonzero(fold == number)
    splits = {"train": rows.select(np.flatnonzero(fold != number)), "test": rows.select(held)}
    return replace(
        asked, data=replace(asked.data, splits=splits), training=_for_trials(asked.training)
    )


def _costs(asked: Asked, fold: np.ndarray) -> dict[str, float]:
    """Strategy, in the order of their trials -> what a trial of it costs, in fine-tunings of everything on all rows."""
    checkpoint, training = asked.checkpoint, asked.training
    model = checkpoint.model.eval().to(training.device)
    encoder = make_encoder(checkpoint.task, checkpoint.processor, model.config, asked.max_length)
    inputs = encoder.collate(
        list(encoder.rows(asked.data.train.select(range(min(SAMPLE, len(fold))))))
    )
    inputs = {
        name: tensor.to(training.device) for name, tensor in inputs.items() if name != "labels"
    }
    layers, fixed = checkpoint.layers, checkpoint.fixed
    flops = stage_flops(model, inputs, layers)

    def cost(strategy: str, asked: Asked) -> float:
        labels = asked.data.train["label"][:]
        return len(labels) * plan_cost(
            in_passes(asked.plan(strategy), labels, asked.training), layers, flops, fixed
        )

    one_class = asked.data.problem_type == "single_label_classification" and find_linear_head(model)
    names = [name for name in (FIRST, *CANDIDATES) if name != "contrastive" or one_class]
    trial = _without(asked, fold, 0)
    with only_warnings():  # as above
        full = cost("full", asked)
        return {name: cost(name, trial) / full for name in names}


def _for_trials(training: TrainingConfig) -> TrainingConfig:
    """The user's arguments, less what belongs to a run that stays or needs a validation split."""
    own = copy.copy(training)
    own.disable_tqdm, own.output_dir, own.report_to = True, None, []
    own.early_stopping_patience, own.average_last, own.wise_ft = None, 0.0, False
    return own


def _is_quiet(asked: Asked) -> bool:
    return bool(asked.training.disable_tqdm) or not PartialState().is_main_process


@contextmanager
def _folder_for_trials(config: TransferConfig) -> Iterator[str]:
    """A store within the store, the same in all processes: no other run has use for rows less a fold."""
    folders = [str(temporary_path(resolve_cache_dir(config.cache_dir) / "trials"))]
    broadcast_object_list(folders)
    try:
        yield folders[0]
        PartialState().wait_for_everyone()
    finally:
        shutil.rmtree(folders[0], ignore_errors=True)
