"""A phase that is trained in steps, by Trainer."""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.augmentation import Augment, fit_augmentation
from hf_transfer.errors import UserError
from hf_transfer.frozen.phase import FrozenPhase, cache_facts, freeze_below
from hf_transfer.models.adapters import adapter_rates, merge, read_adapter, wrap_with_adapter
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.freeze import training_only
from hf_transfer.models.head import headless
from hf_transfer.models.weights import restore_weights
from hf_transfer.record import PhaseFacts, from_json, to_json
from hf_transfer.resume.callback import StopSignal, TrainingStateCallback, catch_stop_signals
from hf_transfer.resume.states import State
from hf_transfer.strategies.plan import Phase, learning_rates
from hf_transfer.training.averaging import add_weight_averaging, select_by_validation
from hf_transfer.training.batches import RowOrder, StepBatches, sampled_order
from hf_transfer.training.callbacks import add_callbacks
from hf_transfer.training.contrastive import balanced_order, contrastive_loss
from hf_transfer.training.epochs import affordable_eval_steps, phase_max_steps
from hf_transfer.training.losses import LossFunction, choose_loss
from hf_transfer.training.nan_guard import require_finite
from hf_transfer.training.packing import packed_layers
from hf_transfer.training.plan_run import PlanRun
from hf_transfer.training.trainer import (
    PhaseTrainer,
    phase_arguments,
    read_history,
    validation_metrics,
)


@dataclass(frozen=True)
class PhaseInputs:
    """What a phase trains with: model, learning rates by parameter, rows, and this process's part.

    `frozen` is None where no activations are cached.
    """

    model: Any
    rates: Mapping[str, float]
    frozen: FrozenPhase | None
    train: Dataset
    validation: Dataset | None
    augment: Augment | None
    batches: StepBatches
    resumed: State | None  # of this phase


def run_step_phase(
    number: int, run: PlanRun, done: Sequence[PhaseFacts]
) -> tuple[Checkpoint, PhaseFacts]:
    """The checkpoint after a phase, and the phase's facts; `done` are those of the ones before."""
    phase = run.plan.phases[number]
    checkpoint = run.job.checkpoint
    resumed = run.folder.resumed if run.folder else None
    if resumed and len(resumed.facts["done"]) != len(done):
        resumed = None
    inputs = _prepare(phase, run, resumed)
    frozen = inputs.frozen
    began = time.perf_counter()
    with ExitStack() as contexts:
        contexts.enter_context(training_only(inputs.model, inputs.rates))
        folder = Path(contexts.enter_context(tempfile.TemporaryDirectory()))
        stop = contexts.enter_context(catch_stop_signals()) if run.folder else StopSignal()
        if frozen:
            contexts.enter_context(frozen.split.replaying())
        if phase.loss == "contrastive":
            contexts.enter_context(headless(inputs.model))
        collate = frozen.collate if frozen else run.job.encoder.collate
        contexts.enter_context(packed_layers(run.job, inputs.model, inputs.train, collate))
        trainer = _make_trainer(phase, run, inputs, folder, stop)
        learned = _train(trainer, phase, run, inputs, done)
        require_finite(inputs.model)
    if phase.adapter:
        adapter = read_adapter(inputs.model)
        checkpoint = replace(checkpoint, model=merge(inputs.model), adapter=adapter)
    seconds_before = resumed.facts["seconds"] if resumed else 0.0
    is_augmented = inputs.augment or (frozen and run.plan.cached_views)
    facts = {
        "name": phase.name,
        "loss": phase.loss,
        "batch_size": inputs.batches.step_size,
        "seconds": seconds_before + time.perf_counter() - began,
        "augmentation": run.job.training.augmentation if is_augmented else None,
        **learned,
        **cache_facts(frozen.features if frozen else ()),
    }
    return checkpoint, from_json(PhaseFacts, facts)


def _prepare(phase: Phase, run: PlanRun, resumed: State | None) -> PhaseInputs:
    """What the phase trains with; frozen layers are computed. Raises UserError if it cannot resume.

    A phase resumes only with batches and cached activations as it began.
    """
    job = run.job
    checkpoint = job.checkpoint
    model = checkpoint.model
    rates = learning_rates(phase, run.plan, checkpoint.layers, checkpoint.fixed)
    frozen = None
    if phase.adapter:
        model = wrap_with_adapter(
            model, checkpoint.head, phase.adapter, phase.adapter_rank, checkpoint.fixed
        )
        rates = adapter_rates(model, rates)
    else:
        if resumed and phase.loss != "contrastive":
            restore_weights(model, resumed.load("weights"))  # also those below the boundary
        frozen = freeze_below(rates, run.plan, job, run.cache, run.train, run.validation)
    rows = frozen or run
    batches = phase_batches(phase, run, rows.train)
    if resumed:
        _require_same_steps(resumed, batches, frozen)
    # The contrastive loss of other batches would say nothing of the head.
    validation = None if phase.loss == "contrastive" else rows.validation
    augment = None
    if not frozen:
        augment = fit_augmentation(job.training.augmentation, job.encoder, run.train)
    return PhaseInputs(model, rates, frozen, rows.train, validation, augment, batches, resumed)


def _require_same_steps(resumed: State, batches: StepBatches, frozen: FrozenPhase | None) -> None:
    if resumed.facts["steps_an_epoch"] != batches.steps:
        raise UserError(
            f"{batches.processes} processes cannot divide the last examples of an epoch as it "
            "began",
            "start as many as before, or fewer",
        )
    if resumed.facts["replays"] != (frozen is not None):
        raise UserError(
            "the activations of frozen layers were cached before, and cannot be now, or the other "
            "way round",
            "give --cache_frozen, --cache_dir and --cache_limit_gb as they were, and room in the "
            "store",
        )


def phase_batches(phase: Phase, run: PlanRun, rows: Dataset) -> StepBatches:
    """The batches of this process in a phase."""
    training = run.job.training
    order: RowOrder
    if phase.loss == "contrastive":
        order = balanced_order(rows["label"][:], training)
        batch_size = order.batch_size
    else:
        batch_size = run.plan.batch_size * max(1, training.n_gpu)
        by_length = "group_by_length" if run.job.encoder.by_length else "random"
        strategy = training.train_sampling_strategy or by_length
        views = len(rows) // len(run.train)
        seed = training.seed if training.data_seed is None else training.data_seed
        by_class = training.class_weights == "sampler"
        order = sampled_order(rows, strategy, seed, batch_size * run.shards, views, by_class)
    processes = training.world_size
    step_examples = batch_size * run.shards
    own, left = divmod(step_examples, run.accumulation * processes)
    # All examples of a contrastive batch are compared with each other.
    if left or (phase.loss == "contrastive" and own < batch_size):
        raise UserError(
            f"{step_examples} examples per step cannot be divided among {processes} processes",
            f"start as many as before, or one: a step had {run.shards} batches of {batch_size}",
        )
    return StepBatches(order, own, run.accumulation, processes, training.process_index)


def _make_trainer(
    phase: Phase, run: PlanRun, inputs: PhaseInputs, folder: Path, stop: StopSignal
) -> PhaseTrainer:
    problem_type = run.job.data.problem_type
    loss: LossFunction = contrastive_loss
    if phase.loss == "task":
        classes = len(run.job.checkpoint.labels)
        loss = choose_loss(problem_type, run.job.training, run.train["label"][:], classes)
    return PhaseTrainer(
        model=inputs.model,
        args=_arguments(phase, run, inputs, folder),
        learning_rates=inputs.rates,
        finish=run.job.encoder.finish,
        batches=inputs.batches,
        augment=inputs.augment,
        stop=stop,
        train_dataset=inputs.train,
        eval_dataset=inputs.validation,
        data_collator=inputs.frozen.collate if inputs.frozen else run.job.encoder.collate,
        compute_metrics=validation_metrics(loss, problem_type == "single_label_classification"),
        compute_loss_func=loss,
        callbacks=[run.trackers] if run.trackers else None,
    )


def _arguments(phase: Phase, run: PlanRun, inputs: PhaseInputs, folder: Path) -> TrainingConfig:
    plan = run.plan
    training = run.job.training
    evaluates = inputs.validation is not None and training.eval_strategy != "no"
    # A head in closed form may be the best step already.
    may_start_best = training.eval_on_start or plan.phases[0].solver == "convex"
    limited = training.max_steps > 0
    max_steps = phase_max_steps(phase, plan, training.max_steps) if limited else -1
    steps = max_steps if limited else math.ceil(phase.epochs * inputs.batches.steps)
    changes: dict[str, Any] = {"disable_tqdm": True} if run.is_trial else {}
    if evaluates and training.eval_steps is None and training.early_stopping_patience is None:
        trained = steps * inputs.batches.step_size
        changes["eval_steps"] = affordable_eval_steps(steps, trained, len(inputs.validation or ()))
    return phase_arguments(
        training,
        folder,
        num_train_epochs=phase.epochs,
        max_steps=max_steps,
        learning_rate=plan.learning_rate,
        per_device_train_batch_size=inputs.batches.batch_size // max(1, training.n_gpu),
        gradient_accumulation_steps=run.accumulation,
        weight_decay=plan.weight_decay,
        eval_strategy=training.eval_strategy if evaluates else "no",
        eval_on_start=evaluates and not inputs.resumed and may_start_best,
        train_sampling_strategy="random",  # the order of rows is in batches.py
        **changes,
    )


def _train(
    trainer: PhaseTrainer,
    phase: Phase,
    run: PlanRun,
    inputs: PhaseInputs,
    done: Sequence[PhaseFacts],
) -> dict[str, Any]:
    """Train, and return what PhaseFacts says of it."""
    resumed = inputs.resumed
    best = add_callbacks(trainer, run.job.training)
    candidates = add_weight_averaging(trainer, phase, run.plan, run.job.training)
    resumed_at = [*resumed.facts["resumed_at"], resumed.facts["step"]] if resumed else []
    if run.folder:
        about = {
            "resumed_at": resumed_at,
            "name": phase.name,
            "done": [to_json(facts) for facts in done],
            "epochs": [each.epochs for each in run.plan.phases],
            "shards": run.shards,
            "steps_an_epoch": trainer.batches.steps,
            "replays": inputs.frozen is not None,
        }
        stateful = list(filter(None, (best, candidates, trainer.guard)))
        minutes = run.job.training.save_minutes
        trainer.save_states_with(
            TrainingStateCallback(run.folder, about, trainer.stop, minutes, stateful, resumed)
        )
    trainer.train_or_resume()
    trainer.broadcast_buffers()
    steps = trainer.state.global_step
    best_step = best.best_step if best else None
    history = read_history(trainer)  # before candidates are evaluated: these are no steps
    ended_with = "last step" if best_step in (None, steps) else "best step"
    return {
        "trainable_parameters": trainer.get_num_trainable_parameters(),
        "epochs": round(float(trainer.state.epoch), 4),
        "steps": steps,
        "best_step": best_step,
        **(select_by_validation(trainer, candidates, ended_with) if candidates else {}),
        "history": history,
        "skipped_steps": trainer.guard.skipped,
        "resumed_at": resumed_at,
    }
