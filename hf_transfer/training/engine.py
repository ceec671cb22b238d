"""Run a plan."""

import copy
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import set_seed

from hf_transfer.config import CHECKPOINTS, ProblemType, TrainingConfig
from hf_transfer.data.augmentation import Augment, fit_augmentation
from hf_transfer.data.encode import Encoder, make_encoder
from hf_transfer.data.sources import Data
from hf_transfer.errors import UserError
from hf_transfer.models.adapters import adapter_rates, merge, read_adapter, wrap_with_adapter
from hf_transfer.models.checkpoint import Checkpoint, randomized
from hf_transfer.models.freeze import training_only
from hf_transfer.models.head import headless
from hf_transfer.models.pooling import with_mean_pooling
from hf_transfer.resume.callback import StopSignal, TrainingStateCallback, catch_stop_signals
from hf_transfer.resume.run_folder import SavedRun, open_run, release
from hf_transfer.resume.run_spec import describe_run
from hf_transfer.resume.states import State
from hf_transfer.strategies.plan import Phase, Plan, in_steps, learning_rates, with_epochs
from hf_transfer.training.averaging import gather_candidates, keep_best, put_weights
from hf_transfer.training.batches import Order, StepBatches, plain_order
from hf_transfer.training.contrastive import balanced_order, contrastive_loss
from hf_transfer.training.epochs import share_of_steps
from hf_transfer.training.label_scaling import find_scale, scale_kept_head, scale_labels, unscale
from hf_transfer.training.losses import LossFunction, choose_loss, require_fitting_flags
from hf_transfer.training.probe_phase import Frozen, Splits, cache_facts, freeze_below, solve_phase
from hf_transfer.training.trainer import (
    PhaseTrainer,
    phase_arguments,
    read_history,
    validation_metrics,
    watch_steps,
)

log = logging.getLogger(__name__)

CACHE = "give --cache_frozen, --cache_dir and --cache_limit_gb as they were, and room in the store"


@dataclass(frozen=True)
class Trained:
    """A checkpoint whose model has learned by a plan, how its rows are encoded, and what each phase did."""

    checkpoint: Checkpoint
    plan: Plan
    encoder: Encoder
    training: TrainingConfig
    phases: tuple[dict[str, Any], ...]

    @property
    def model(self) -> Any:
        """The plain AutoModelFor* model."""
        return self.checkpoint.model


@dataclass(frozen=True)
class Work:
    """What all phases of a run share: rows, how they are encoded, what was asked, and where the run is kept.

    Each step has `shards` batches of the phase's size, which the processes divide among them.
    """

    plan: Plan
    encoder: Encoder
    training: TrainingConfig
    splits: Splits
    shards: int
    saved: SavedRun | None = None


def run_plan(
    plan: Plan,
    checkpoint: Checkpoint,
    data: Data,
    training: TrainingConfig,
    max_length: int | None = None,
) -> Trained:
    """The checkpoint after all phases of the plan, ready to evaluate and save; the same on every process.

    With an output folder its state is kept there, and the same run goes on from it. Raises UserError if the folder
    belongs to another run, Finished if all is done, Stopped if a signal asked for it.
    """
    require_runnable(plan, checkpoint, data, training)
    saved = open_run(training, describe_run(plan, checkpoint, data, training, max_length))
    try:
        return _run_phases(plan, checkpoint, data, training, max_length, saved)
    except BaseException:
        release(training)
        raise


def _run_phases(
    plan: Plan,
    checkpoint: Checkpoint,
    data: Data,
    training: TrainingConfig,
    max_length: int | None,
    saved: SavedRun | None,
) -> Trained:
    resumed = saved.resumed.facts if saved and saved.resumed else None
    plan = with_epochs(plan, resumed["epochs"]) if resumed else plan
    shards, training = _divide(resumed["shards"] if resumed else None, training)
    set_seed(training.seed)
    if plan.init == "random":
        checkpoint = randomized(checkpoint, training.seed)
    if plan.pooling == "mean" and not checkpoint.reads_mean:
        checkpoint = with_mean_pooling(checkpoint)
    encoder = make_encoder(
        checkpoint.task, checkpoint.processor, checkpoint.model.config, max_length
    )
    with training.main_process_first(desc="encoding"):
        train = encoder.rows(data.train)
        validation = encoder.rows(data.validation) if data.validation is not None else None
    fit_augmentation(
        training.augmentation, encoder, train
    )  # what does not fit is said before anything is learned
    scale = find_scale(data, checkpoint)
    scale_kept_head(checkpoint, scale)
    work = Work(
        plan,
        scale_labels(encoder, scale),
        training,
        Splits(train, validation, scale),
        shards,
        saved,
    )
    facts = list(resumed["done"]) if resumed else []
    if any(
        phase.solver == "convex" and done["steps"]
        for phase, done in zip(plan.phases, facts, strict=False)
    ):
        plan = in_steps(plan)
        work = replace(work, plan=plan)
    for number in range(len(facts), len(plan.phases)):
        if plan.phases[number].solver == "convex":
            # Weights that have learned already are this run's alone: what they give is of no use to another.
            once = plan if number == 0 else replace(plan, cache=replace(plan.cache, on=False))
            solved = solve_phase(
                plan.phases[number], once, checkpoint, work.encoder, training, work.splits
            )
            if solved:
                facts.append(solved)
                continue
            plan = in_steps(plan)
            work = replace(work, plan=plan)
        checkpoint, fact = run_phase(number, checkpoint, work, facts)
        facts.append(fact)
    unscale(checkpoint, scale)
    checkpoint.model.eval()
    if saved:
        saved.wait()
    return Trained(checkpoint, plan, encoder, training, tuple(facts))


def require_runnable(
    plan: Plan | None, checkpoint: Checkpoint, data: Data, training: TrainingConfig
) -> None:
    """Raise UserError for what would stop a run before anything is learned; no plan: it is still to be chosen."""
    if plan:
        _require_steps(plan, training)
    _require_validation(data, training)
    _require_same_problem(checkpoint, data)
    require_fitting_flags(data.problem_type, training)


@dataclass(frozen=True)
class Material:
    """What a phase has to learn with: a model whose parameters have rates, rows, and the batches of this process."""

    model: Any
    rates: Mapping[str, float]
    frozen: Frozen | None
    train: Dataset
    validation: Dataset | None
    augment: Augment | None
    batches: StepBatches
    examples_a_step: int  # of all processes


def run_phase(
    number: int, checkpoint: Checkpoint, work: Work, done: Sequence[dict[str, Any]]
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint after a phase that is trained in steps, and the facts for the record; `done` are those before."""
    phase, training = work.plan.phases[number], work.training
    resumed = work.saved.resumed if work.saved and work.saved.phases_done == len(done) else None
    material = _gather(phase, checkpoint, work, resumed)
    began, frozen = time.perf_counter(), material.frozen
    with ExitStack() as contexts:
        contexts.enter_context(training_only(material.model, material.rates))
        folder = contexts.enter_context(_training_folder(training, phase))
        stop = contexts.enter_context(catch_stop_signals()) if work.saved else StopSignal()
        if frozen:
            contexts.enter_context(frozen.replaying())
        if phase.loss == "contrastive":
            contexts.enter_context(headless(material.model))
        loss = _loss(phase, work, checkpoint)
        trainer = PhaseTrainer(
            model=material.model,
            args=_arguments(phase, work, material, folder, resumed is not None),
            rates=material.rates,
            batches=material.batches,
            augment=material.augment,
            stop=stop,
            train_dataset=material.train,
            eval_dataset=material.validation,
            data_collator=frozen.collate if frozen else work.encoder.collate,
            compute_metrics=validation_metrics(
                loss, _problem_type(checkpoint) == "single_label_classification"
            ),
            compute_loss_func=loss,
        )
        learned = _train(trainer, phase, work, resumed, done, is_frozen=frozen is not None)
    if phase.adapter:
        adapter = read_adapter(material.model)
        checkpoint = replace(checkpoint, model=merge(material.model), adapter=adapter)
    before = resumed.facts["seconds"] if resumed else 0.0
    changed = material.augment or (frozen and work.plan.cache.views)
    return checkpoint, {
        "name": phase.name,
        "loss": phase.loss,
        "batch_size": material.examples_a_step,
        **learned,
        "seconds": before + time.perf_counter() - began,
        **cache_facts(frozen.computed if frozen else ()),
        **({"augmentation": training.augmentation} if changed else {}),
    }


def _gather(phase: Phase, checkpoint: Checkpoint, work: Work, resumed: State | None) -> Material:
    """What a phase learns with; what is frozen is computed. Raises UserError if it cannot go on as it was begun."""
    plan, training, splits, model = work.plan, work.training, work.splits, checkpoint.model
    rates, frozen = learning_rates(phase, plan, checkpoint.layers, checkpoint.fixed), None
    if phase.adapter:
        model = wrap_with_adapter(
            model, checkpoint.head, phase.adapter, phase.adapter_rank, checkpoint.fixed
        )
        rates = adapter_rates(model, rates)
    else:
        if resumed and phase.loss != "contrastive":
            put_weights(model, resumed.load("weights"))  # also those that lie below the boundary
        frozen = freeze_below(rates, plan, checkpoint, work.encoder, training, splits)
    train, validation = (
        (frozen.train, frozen.validation) if frozen else (splits.train, splits.validation)
    )
    batches, examples_a_step = _batches(phase, work, train)
    if resumed and resumed.facts["steps_an_epoch"] != batches.steps:
        raise UserError(
            f"{training.world_size} processes cannot divide the last examples of an epoch as it was begun",
            "start as many as before, or fewer",
        )
    if resumed and resumed.facts["replays"] != (frozen is not None):
        raise UserError(
            "what is frozen was computed once before, and cannot be now, or the other way round",
            CACHE,
        )
    if phase.loss == "contrastive":
        validation = None  # the loss of other batches would say nothing of the head
    augment = None if frozen else fit_augmentation(training.augmentation, work.encoder, train)
    return Material(model, rates, frozen, train, validation, augment, batches, examples_a_step)


def _train(
    trainer: PhaseTrainer,
    phase: Phase,
    work: Work,
    resumed: State | None,
    done: Sequence[dict[str, Any]],
    is_frozen: bool,
) -> dict[str, Any]:
    """How much learned, for how long, which weights were kept, and what was logged."""
    model, training = trainer.model, work.training
    best = watch_steps(trainer, training)
    candidates = gather_candidates(trainer, phase, work.plan, training)
    resumed_at = [*resumed.facts["resumed_at"], resumed.facts["step"]] if resumed else []
    if work.saved:
        about = {
            "resumed_at": resumed_at,
            "name": phase.name,
            "done": list(done),
            "epochs": [each.epochs for each in work.plan.phases],
            "shards": work.shards,
            "steps_an_epoch": trainer.batches.steps,
            "replays": is_frozen,
        }
        remembered = [each for each in (best, candidates, trainer.guard) if each]
        trainer.keep_states(
            TrainingStateCallback(
                work.saved, about, trainer.stop, training.save_minutes, remembered, resumed
            )
        )
    trainer.learn()
    trainer.share_buffers()
    steps, best_step = trainer.state.global_step, best.best_step if best else None
    history = read_history(trainer)  # before the candidates are judged: these are no steps
    ended_with = "last step" if best_step in (None, steps) else "best step"
    return {
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "epochs": round(float(trainer.state.epoch), 4),
        "steps": steps,
        "best_step": best_step,
        **(keep_best(trainer, candidates, ended_with) if candidates else {}),
        "history": history,
        "skipped_steps": trainer.guard.skipped,
        "resumed_at": resumed_at,
    }


def _divide(shards: int | None, training: TrainingConfig) -> tuple[int, TrainingConfig]:
    """Batches of the phase's size in a step, and the arguments with which the processes at hand make as many of them.

    A run that goes on keeps those that it began with, so that each step has the rows that it would have had.
    """
    processes, own = training.world_size, training.gradient_accumulation_steps
    if shards is None or shards == processes * own:
        return processes * own, training
    training = copy.copy(training)
    training.gradient_accumulation_steps = -(-shards // processes)
    return shards, training


def _batches(phase: Phase, work: Work, rows: Dataset) -> tuple[StepBatches, int]:
    """The batches of this process in a phase on these rows, and the examples that a step has in all processes."""
    plan, training = work.plan, work.training
    order: Order
    if phase.loss == "contrastive":
        order = balanced_order(rows["label"][:], training)
        batch_size = order.batch_size
    else:
        batch_size = plan.batch_size * max(1, training.n_gpu)
        strategy = training.train_sampling_strategy or (
            "group_by_length" if work.encoder.by_length else "random"
        )
        views = len(rows) // len(work.splits.train)
        seed = training.seed if training.data_seed is None else training.data_seed
        order = plain_order(rows, strategy, seed, batch_size * work.shards, views)
    accumulated, processes = training.gradient_accumulation_steps, training.world_size
    own, left = divmod(batch_size * work.shards, accumulated * processes)
    torn = (
        phase.loss == "contrastive" and own < batch_size
    )  # all of a batch are compared with each other
    if left or torn:
        raise UserError(
            f"{batch_size * work.shards} examples a step cannot be divided among {processes} processes",
            f"start as many as before, or one: a step had {work.shards} batches of {batch_size}",
        )
    return StepBatches(
        order, own, accumulated, processes, training.process_index
    ), batch_size * work.shards


def _arguments(
    phase: Phase, work: Work, material: Material, folder: Path, goes_on: bool
) -> TrainingConfig:
    plan, training = work.plan, work.training
    evaluates = material.validation is not None and training.eval_strategy != "no"
    return phase_arguments(
        training,
        folder,
        num_train_epochs=phase.epochs,
        max_steps=share_of_steps(phase, plan, training.max_steps) if training.max_steps > 0 else -1,
        learning_rate=plan.learning_rate,
        per_device_train_batch_size=material.batches.batch_size // max(1, training.n_gpu),
        weight_decay=plan.weight_decay,
        eval_strategy=training.eval_strategy if evaluates else "no",
        # A head that was solved may be the best step already.
        eval_on_start=evaluates
        and not goes_on
        and (training.eval_on_start or plan.phases[0].solver == "convex"),
        train_sampling_strategy="random",  # ours is in order.py
    )


def _loss(phase: Phase, work: Work, checkpoint: Checkpoint) -> LossFunction:
    if phase.loss == "contrastive":
        return contrastive_loss
    labels = work.splits.train["label"][:]
    return choose_loss(_problem_type(checkpoint), work.training, labels, len(checkpoint.labels))


def _problem_type(checkpoint: Checkpoint) -> ProblemType:
    return cast(ProblemType, checkpoint.model.config.problem_type)


def _require_steps(plan: Plan, training: TrainingConfig) -> None:
    """Raise UserError if there are too few steps for each phase to have one."""
    stepped = sum(phase.solver == "trainer" for phase in plan.phases)
    if 0 < training.max_steps < stepped:
        raise UserError(
            f"--max_steps {training.max_steps} is too small for the {stepped} phases of {plan.strategy}",
            f"give {stepped} or more",
        )


def _require_same_problem(checkpoint: Checkpoint, data: Data) -> None:
    """Raise UserError if the model was set up to answer something else than the labels say."""
    if _problem_type(checkpoint) != data.problem_type:
        raise UserError(
            f"the model is set up for {_problem_type(checkpoint)}, the labels are for {data.problem_type}",
            "give load_checkpoint problem_type=data.problem_type; pre-training takes one class a row",
        )


def _require_validation(data: Data, training: TrainingConfig) -> None:
    """Raise UserError if an option chooses on a validation split that is not there."""
    asked = {
        "early_stopping_patience": training.early_stopping_patience is not None,
        "average_last": training.average_last > 0,
        "wise_ft": training.wise_ft,
    }
    for name, given in asked.items():
        if given and data.validation is None:
            raise UserError(
                f"--{name} needs a validation split", "name a --validation_split, or leave it out"
            )


@contextmanager
def _training_folder(training: TrainingConfig, phase: Phase) -> Iterator[Path]:
    """Where Trainer writes: below the output folder if reports were asked for, else nowhere that stays."""
    if training.report_to and training.output_dir:
        yield Path(str(training.output_dir)) / CHECKPOINTS / "reports" / phase.name
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
