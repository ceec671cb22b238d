"""Run a plan."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import ProgressCallback, set_seed

from hf_transfer.config import TrainingConfig
from hf_transfer.data.encode import Encoder, make_encoder
from hf_transfer.data.sources import Data
from hf_transfer.errors import UserError
from hf_transfer.models.adapters import merge, wrap_with_lora
from hf_transfer.models.checkpoint import Checkpoint, randomized
from hf_transfer.models.freezing import training_only
from hf_transfer.strategies.plan import Phase, Plan
from hf_transfer.training.trainer import (
    BestStep,
    PhaseTrainer,
    QuietProgress,
    accuracy_of,
    phase_arguments,
    weighted_loss,
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
    if data.validation is None and training.early_stopping_patience is not None:
        raise UserError(
            "--early_stopping_patience needs a validation split", "name a --validation_split, or leave it out"
        )
    set_seed(training.seed)
    if plan.init == "random":
        checkpoint = randomized(checkpoint, training.seed)
    encoder = make_encoder(checkpoint.task, checkpoint.processor, checkpoint.model.config, max_length)
    with training.main_process_first(desc="encoding"):
        train = encoder.rows(data.train)
        validation = encoder.rows(data.validation) if data.validation is not None else None
    facts = []
    for phase in plan.phases:
        checkpoint, fact = run_phase(phase, plan, checkpoint, encoder, training, (train, validation))
        facts.append(fact)
    checkpoint.model.eval()
    return Trained(checkpoint, plan, encoder, training, tuple(facts))


def run_phase(
    phase: Phase,
    plan: Plan,
    checkpoint: Checkpoint,
    encoder: Encoder,
    training: TrainingConfig,
    splits: tuple[Dataset, Dataset | None],
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint after one phase, and the facts for the record."""
    began = time.perf_counter()
    train, validation = splits
    model, head = checkpoint.model, set(checkpoint.new_parameters)
    if phase.adapter:
        model = wrap_with_lora(model, checkpoint.new_parameters, phase.adapter_rank)
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        head = {name for name in trainable if ".modules_to_save." in name}
    else:
        trainable = {n for n, _ in model.named_parameters() if ("head" if n in head else "body") in phase.trainable}
    with training_only(model, trainable), _training_folder(training, phase) as folder:
        arguments = _arguments(phase, plan, training, encoder, folder, validation)
        trainer = PhaseTrainer(
            model=model,
            args=arguments,
            head=head,
            lr_scale=phase.lr_scale,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=encoder.collate,
            compute_metrics=accuracy_of,
            compute_loss_func=_loss(training, train, checkpoint),
        )
        best = _watch(trainer, model, training, validation)
        trainable_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        trainer.train()
    if phase.adapter:
        checkpoint = replace(checkpoint, model=merge(model))
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    return checkpoint, {
        "name": phase.name,
        "trainable_parameters": trainable_count,
        "epochs": round(float(trainer.state.epoch), 4),
        "steps": trainer.state.global_step,
        "best_step": best.best_step if best else None,
        "seconds": time.perf_counter() - began,
        "frozen_passes": 0,
        "cache": "off",
        "cached_bytes": 0,
        "history": history,
    }


def _arguments(
    phase: Phase, plan: Plan, training: TrainingConfig, encoder: Encoder, folder: Path, validation: Dataset | None
) -> TrainingConfig:
    share = phase.epochs / sum(p.epochs for p in plan.phases)
    return phase_arguments(
        training,
        folder,
        num_train_epochs=phase.epochs,
        max_steps=max(1, round(training.max_steps * share)) if training.max_steps > 0 else -1,
        learning_rate=plan.learning_rate,
        per_device_train_batch_size=plan.batch_size,
        weight_decay=plan.weight_decay,
        eval_strategy=training.eval_strategy if validation is not None else "no",
        train_sampling_strategy=training.train_sampling_strategy
        or ("group_by_length" if encoder.by_length else "random"),
    )


def _loss(training: TrainingConfig, train: Dataset, checkpoint: Checkpoint) -> Any:
    if training.class_weights == "none":
        return None
    return weighted_loss(train["label"][:], len(checkpoint.labels), training.label_smoothing_factor)


def _watch(trainer: PhaseTrainer, model: Any, training: TrainingConfig, validation: Dataset | None) -> BestStep | None:
    if not training.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(QuietProgress())
    if validation is None or training.eval_strategy == "no" or not training.load_best_model_at_end:
        return None
    best = BestStep(model, training.metric_for_best_model, training.early_stopping_patience)
    trainer.add_callback(best)
    return best


@contextmanager
def _training_folder(training: TrainingConfig, phase: Phase) -> Iterator[Path]:
    """Where Trainer writes: below the output folder if checkpoints were asked for, else nowhere that stays."""
    if training.save_strategy != "no":
        yield Path(str(training.output_dir)) / "checkpoints" / phase.name
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
