"""Run a plan: phase after phase, resumed where it was stopped."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from transformers import set_seed

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.augmentation import fit_augmentation
from hf_transfer.data.encode import Encoder
from hf_transfer.data.prepared import Preparation, prepare_images
from hf_transfer.data.sources import Data
from hf_transfer.errors import UserError
from hf_transfer.job import Job, make_job
from hf_transfer.models.checkpoint import Checkpoint, randomized
from hf_transfer.models.pooling import mean_pooled
from hf_transfer.models.predictor import Predictor
from hf_transfer.record import PhaseFacts, from_json
from hf_transfer.resume.run_folder import SavedRun, open_run, release
from hf_transfer.resume.run_spec import describe_run
from hf_transfer.strategies.plan import Plan, with_epochs, without_closed_form
from hf_transfer.training.checks import require_supported
from hf_transfer.training.label_scaling import (
    fit_label_scale,
    scale_labels,
    scale_loaded_head,
    unscale_head,
)
from hf_transfer.training.losses import require_fitting_flags
from hf_transfer.training.plan_run import PlanRun
from hf_transfer.training.probe_phase import run_probe_phase
from hf_transfer.training.step_phase import run_step_phase
from hf_transfer.training.trackers import open_trackers


@dataclass(frozen=True)
class Trained:
    """A checkpoint whose model was trained by a plan, its encoder, and what each phase did."""

    checkpoint: Checkpoint
    plan: Plan
    encoder: Encoder
    training: TrainingConfig
    phases: tuple[PhaseFacts, ...]

    @property
    def model(self) -> Any:
        """The plain AutoModelFor* model."""
        return self.checkpoint.model

    @property
    def predictor(self) -> Predictor:
        """The trained model with its encoder."""
        return Predictor(self.model, self.encoder, self.model.config.problem_type)


def run_plan(
    plan: Plan,
    checkpoint: Checkpoint,
    data: Data,
    training: TrainingConfig,
    cache: CacheConfig | None = None,
) -> Trained:
    """The checkpoint after all phases of the plan, ready to evaluate and save.

    The same on every process. With an output folder, training states are saved there, and the same
    run resumes from them. Raises UserError if the folder belongs to another run, Finished if all is
    done, Stopped if a signal requested it.
    """
    cache = cache or CacheConfig()
    job = make_job(checkpoint, data, training, cache)
    require_runnable(job, plan)
    job = _with_prepared_images(job, plan, cache)
    folder = open_run(training, describe_run(plan, job))
    try:
        return train(plan, job, cache, folder)
    except BaseException:
        release(training)
        raise


def _with_prepared_images(job: Job, plan: Plan, cache: CacheConfig) -> Job:
    """The job with images that are decoded once, where load_data was given no preparation."""
    prepared = job.data.prepared
    stepped = any(phase.solver == "trainer" for phase in plan.phases)
    if not (job.encoder.decodes and stepped) or (prepared and prepared.was_tried_for(job.encoder)):
        return job
    preparation = Preparation(job.encoder, job.checkpoint.processor, cache)
    encoder = prepare_images(job.data.splits, preparation).serve(job.encoder)
    return replace(job, encoder=encoder)


def train(
    plan: Plan,
    job: Job,
    cache: CacheConfig,
    folder: SavedRun | None = None,
    is_trial: bool = False,
) -> Trained:
    """As run_plan, for a job that was checked; resumed from `folder`, where there is one."""
    resumed = folder.resumed.facts if folder and folder.resumed else None
    done: list[PhaseFacts] = []
    shards = job.training.world_size * job.training.gradient_accumulation_steps
    if resumed:
        # Epochs and batches per step as the run began with: with another number of processes, each
        # step has the rows that it would have had.
        plan = with_epochs(plan, resumed["epochs"])
        shards = resumed["shards"]
        done = [from_json(PhaseFacts, facts) for facts in resumed["done"]]
    run = _start(plan, job, cache)
    trackers = open_trackers(job.training, is_trial)
    run = replace(run, shards=shards, folder=folder, is_trial=is_trial, trackers=trackers)
    for phase, facts in zip(plan.phases, done, strict=False):
        if phase.solver == "convex" and facts.steps:
            run = replace(run, plan=without_closed_form(plan))
    with trackers or nullcontext():
        for number in range(len(done), len(plan.phases)):
            solved = None
            if run.plan.phases[number].solver == "convex":
                solved = run_probe_phase(number, run)
                if solved is None:  # its features cannot be computed apart
                    run = replace(run, plan=without_closed_form(run.plan))
            if solved is None:
                if trackers:
                    trackers.steps_before = sum(phase.steps for phase in done)
                checkpoint, facts = run_step_phase(number, run, done)
                run = replace(run, job=replace(run.job, checkpoint=checkpoint))
            done.append(solved or facts)
    checkpoint = run.job.checkpoint
    unscale_head(checkpoint, run.scale)
    checkpoint.model.eval()
    if folder:
        folder.wait()
    return Trained(checkpoint, run.plan, job.encoder, job.training, tuple(done))


def _start(plan: Plan, job: Job, cache: CacheConfig) -> PlanRun:
    """The run before its first phase: weights, encoded rows, scale of the labels."""
    training = job.training
    checkpoint = job.checkpoint
    set_seed(training.seed)
    if plan.init == "random":
        checkpoint = randomized(checkpoint, training.seed)
    if plan.pooling == "mean" and not checkpoint.reads_mean:
        pooled = mean_pooled(checkpoint)
        checkpoint = replace(pooled, model=copy.deepcopy(pooled.model))  # others read it, too
    validation = job.data.validation
    with training.main_process_first(desc="encoding"):
        train_rows = job.encoder.rows(job.data.train)
        if validation is not None:
            validation = job.encoder.rows(validation)
    # What does not fit is said before anything is learned.
    fit_augmentation(training.augmentation, job.encoder, train_rows)
    scale = fit_label_scale(job.data, checkpoint)
    scale_loaded_head(checkpoint, scale)
    scaled = replace(job, checkpoint=checkpoint, encoder=scale_labels(job.encoder, scale))
    return PlanRun(plan, scaled, cache, train_rows, validation, scale, shards=1)


def require_runnable(job: Job, plan: Plan | None = None) -> None:
    """Raise UserError for what would stop a run; without a plan, what any plan would meet."""
    if plan:
        require_steps(plan, job.training)
    _require_validation(job, plan)
    of_model = job.model.config.problem_type
    if of_model != job.data.problem_type:
        raise UserError(
            f"the model is set up for {of_model}, the labels are for {job.data.problem_type}",
            "load the checkpoint for these data; pre-training takes one class per row",
        )
    require_fitting_flags(job.data.problem_type, job.training, job.data.task.labels_words)
    require_supported(job.model, job.training)


def require_steps(plan: Plan, training: TrainingConfig) -> None:
    """Raise UserError if there are too few steps for each phase to have one."""
    stepped = sum(phase.solver == "trainer" for phase in plan.phases)
    if 0 < training.max_steps < stepped:
        too_small = f"--max_steps {training.max_steps} is too small"
        raise UserError(
            f"{too_small} for the {stepped} phases of {plan.strategy}", f"give {stepped} or more"
        )


def _require_validation(job: Job, plan: Plan | None) -> None:
    if job.data.validation is not None:
        return
    unused: dict[str, Any] = {
        "early_stopping_patience": None,
        "average_last": 0.0,
        "wise_ft": False,
    }
    if plan and plan.phases[-1].solver != "convex":  # which predicts its rows out of fold
        unused["thresholds"] = "default"
    for name, value in unused.items():
        if getattr(job.training, name) != value:
            raise UserError(
                f"--{name} needs a validation split", "name a --validation_split, or leave it out"
            )
