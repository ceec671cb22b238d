"""Run a plan."""

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, set_seed

from hf_transfer.config import ProblemType, TrainingConfig
from hf_transfer.data.encode import Encoder, make_encoder
from hf_transfer.data.sources import Data
from hf_transfer.errors import UserError
from hf_transfer.models.adapters import adapter_rates, merge, read_adapter, wrap_with_adapter
from hf_transfer.models.checkpoint import Checkpoint, randomized
from hf_transfer.models.freezing import training_only
from hf_transfer.models.head import headless
from hf_transfer.models.pooling import with_mean_pooling
from hf_transfer.strategies.plan import Phase, Plan, learning_rates
from hf_transfer.training.augment import fit_augmentation
from hf_transfer.training.averaging import gather_candidates, keep_best
from hf_transfer.training.contrastive import balanced_sampler, contrastive_loss
from hf_transfer.training.freezing import Splits, cache_facts, freeze_below, solve_phase
from hf_transfer.training.losses import LossFunction, choose_loss, require_fitting_flags
from hf_transfer.training.pace import share_of_steps
from hf_transfer.training.scaling import find_scale, scale_kept_head, scale_labels, unscale
from hf_transfer.training.trainer import (
    BestStep,
    LoggedLines,
    PhaseTrainer,
    QuietProgress,
    accuracy_of,
    phase_arguments,
)

log = logging.getLogger(__name__)


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


def run_plan(
    plan: Plan, checkpoint: Checkpoint, data: Data, training: TrainingConfig, max_length: int | None = None
) -> Trained:
    """The checkpoint after all phases of the plan, ready to evaluate and save; the same on every process."""
    require_runnable(plan, checkpoint, data, training)
    set_seed(training.seed)
    if plan.init == "random":
        checkpoint = randomized(checkpoint, training.seed)
    if plan.pooling == "mean" and not checkpoint.reads_mean:
        checkpoint = with_mean_pooling(checkpoint)
    encoder = make_encoder(checkpoint.task, checkpoint.processor, checkpoint.model.config, max_length)
    with training.main_process_first(desc="encoding"):
        train = encoder.rows(data.train)
        validation = encoder.rows(data.validation) if data.validation is not None else None
    fit_augmentation(training.augmentation, encoder, train)  # what does not fit is said before anything is learned
    scale = find_scale(data, checkpoint)
    scale_kept_head(checkpoint, scale)
    splits = Splits(train, validation, scale)
    learned, facts = scale_labels(encoder, scale), []
    for number in range(len(plan.phases)):
        if plan.phases[number].solver == "convex":
            # Weights that have learned already are this run's alone: what they give is of no use to another.
            once = plan if number == 0 else replace(plan, cache=replace(plan.cache, on=False))
            solved = solve_phase(plan.phases[number], once, checkpoint, learned, training, splits)
            if solved:
                facts.append(solved)
                continue
            plan = replace(plan, phases=tuple(replace(phase, solver="trainer") for phase in plan.phases))
        checkpoint, fact = run_phase(plan.phases[number], plan, checkpoint, learned, training, splits)
        facts.append(fact)
    unscale(checkpoint, scale)
    checkpoint.model.eval()
    return Trained(checkpoint, plan, encoder, training, tuple(facts))


def require_runnable(plan: Plan | None, checkpoint: Checkpoint, data: Data, training: TrainingConfig) -> None:
    """Raise UserError for what would stop a run before anything is learned; no plan: it is still to be chosen."""
    if plan:
        _require_steps(plan, training)
    _require_validation(data, training)
    _require_same_problem(checkpoint, data)
    require_fitting_flags(data.problem_type, training)


def run_phase(
    phase: Phase, plan: Plan, checkpoint: Checkpoint, encoder: Encoder, training: TrainingConfig, splits: Splits
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint after one phase that is trained in steps, and the facts for the record."""
    model, rates, frozen = checkpoint.model, learning_rates(phase, plan, checkpoint.layers, checkpoint.fixed), None
    if phase.adapter:
        model = wrap_with_adapter(model, checkpoint.head, phase.adapter, phase.adapter_rank, checkpoint.fixed)
        rates = adapter_rates(model, rates)
    else:
        frozen = freeze_below(rates, plan, checkpoint, encoder, training, splits)
    began = time.perf_counter()
    rows, validation = (splits.train, splits.validation) if frozen is None else (frozen.train, frozen.validation)
    augment = None if frozen else fit_augmentation(training.augmentation, encoder, rows)
    sampler = None
    if phase.loss == "contrastive":
        sampler = balanced_sampler(rows["label"][:], training)
        plan = replace(plan, batch_size=sampler.batch_size)
        validation = None  # the loss of other batches would say nothing of the head
    with ExitStack() as contexts:
        contexts.enter_context(training_only(model, rates))
        folder = contexts.enter_context(_training_folder(training, phase))
        if frozen:
            contexts.enter_context(frozen.replaying())
        if phase.loss == "contrastive":
            contexts.enter_context(headless(model))
        trainer = PhaseTrainer(
            model=model,
            args=_arguments(phase, plan, training, encoder, folder, validation),
            rates=rates,
            sampler=sampler,
            augment=augment,
            train_dataset=rows,
            eval_dataset=validation,
            data_collator=frozen.collate if frozen else encoder.collate,
            compute_metrics=accuracy_of if _problem_type(checkpoint) == "single_label_classification" else None,
            compute_loss_func=_loss(phase, training, splits.train, checkpoint),
        )
        learned = _train(trainer, phase, plan, training)
    if phase.adapter:
        adapter = read_adapter(model)
        checkpoint = replace(checkpoint, model=merge(model), adapter=adapter)
    return checkpoint, {
        "name": phase.name,
        "loss": phase.loss,
        "batch_size": plan.batch_size * training.world_size * training.gradient_accumulation_steps,
        **learned,
        "seconds": time.perf_counter() - began,
        **cache_facts(frozen.computed if frozen else ()),
        **({"augmentation": training.augmentation} if augment or (frozen and plan.cache.views) else {}),
    }


def _train(trainer: PhaseTrainer, phase: Phase, plan: Plan, training: TrainingConfig) -> dict[str, Any]:
    """How much learned, for how long, which weights were kept, and what was logged."""
    model = trainer.model
    best = _watch(trainer, model, training, trainer.eval_dataset)
    candidates = gather_candidates(trainer, phase, plan, training)
    trainer.train()
    trainer.share_buffers()
    steps, best_step = trainer.state.global_step, best.best_step if best else None
    history = _history(trainer)  # before the candidates are judged: these are no steps
    ended_with = "last step" if best_step in (None, steps) else "best step"
    return {
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "epochs": round(float(trainer.state.epoch), 4),
        "steps": steps,
        "best_step": best_step,
        **(keep_best(trainer, candidates, ended_with) if candidates else {}),
        "history": history,
    }


def _arguments(
    phase: Phase, plan: Plan, training: TrainingConfig, encoder: Encoder, folder: Path, validation: Dataset | None
) -> TrainingConfig:
    evaluates = validation is not None and training.eval_strategy != "no"
    return phase_arguments(
        training,
        folder,
        num_train_epochs=phase.epochs,
        max_steps=share_of_steps(phase, plan, training.max_steps) if training.max_steps > 0 else -1,
        learning_rate=plan.learning_rate,
        per_device_train_batch_size=plan.batch_size,
        weight_decay=plan.weight_decay,
        eval_strategy=training.eval_strategy if evaluates else "no",
        # A head that was solved may be the best step already.
        eval_on_start=evaluates and (training.eval_on_start or plan.phases[0].solver == "convex"),
        train_sampling_strategy=training.train_sampling_strategy
        or ("group_by_length" if encoder.by_length else "random"),
    )


def _loss(phase: Phase, training: TrainingConfig, train: Dataset, checkpoint: Checkpoint) -> LossFunction:
    if phase.loss == "contrastive":
        return contrastive_loss
    return choose_loss(_problem_type(checkpoint), training, train["label"][:], len(checkpoint.labels))


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
            raise UserError(f"--{name} needs a validation split", "name a --validation_split, or leave it out")


def _history(trainer: PhaseTrainer) -> list[dict[str, float]]:
    """What was logged, by step. Raises UserError if a loss is not finite: the weights are worth nothing then."""
    kept = ("step", "epoch", "loss", "learning_rate", "eval_loss", "eval_accuracy")
    entries = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    for entry in entries:
        for key in ("loss", "eval_loss"):
            if not math.isfinite(entry.get(key, 0.0)):
                raise UserError(
                    f"the {key} is {entry[key]} at step {entry['step']}",
                    "give a smaller --learning_rate, or check the data",
                )
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    if losses and losses[-1] > 2 * losses[0]:
        log.warning("the loss rose from %.3g to %.3g: give a smaller --learning_rate", losses[0], losses[-1])
    return [{key: entry[key] for key in kept if key in entry} for entry in entries]


def _watch(trainer: PhaseTrainer, model: Any, training: TrainingConfig, validation: Dataset | None) -> BestStep | None:
    trainer.remove_callback(PrinterCallback if training.disable_tqdm else ProgressCallback)
    trainer.add_callback(LoggedLines() if training.disable_tqdm else QuietProgress())
    if validation is None or training.eval_strategy == "no" or not training.load_best_model_at_end:
        return None
    best = BestStep(model, training.metric_for_best_model, training.early_stopping_patience)
    trainer.add_callback(best)
    return best


@contextmanager
def _training_folder(training: TrainingConfig, phase: Phase) -> Iterator[Path]:
    """Where Trainer writes: below the output folder if checkpoints were asked for, else nowhere that stays."""
    if training.save_strategy != "no" or training.report_to:
        yield Path(str(training.output_dir)) / "checkpoints" / phase.name
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
