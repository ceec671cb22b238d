"""Metrics with intervals beside baselines, and the record of a run."""

import logging
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from hf_transfer import record as facts
from hf_transfer.config.evaluation import EvaluationConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.sources import Data
from hf_transfer.errors import UserError
from hf_transfer.evaluation.baselines import BASELINES
from hf_transfer.evaluation.intervals import bootstrap_interval, share_interval
from hf_transfer.evaluation.metrics import (
    SCORING,
    Metric,
    find_metric,
    load_metric,
    load_tag_metrics,
)
from hf_transfer.evaluation.per_class import count_outputs, describe
from hf_transfer.evaluation.predict import Predictions, predict
from hf_transfer.evaluation.tags import estimate_score, resample
from hf_transfer.models.head import parameter_count
from hf_transfer.models.thresholds import choose_thresholds, keep_thresholds, read_thresholds
from hf_transfer.record import Estimate, Evaluation, RunRecord
from hf_transfer.strategies.plan import Choice
from hf_transfer.training.engine import Trained
from hf_transfer.training.nan_guard import SMALLER_RATE

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "huggingface_hub")


def evaluate(
    trained: Trained, data: Data, config: EvaluationConfig, choice: Choice | None = None
) -> RunRecord:
    """The record of a run, its metrics measured once, on the test split.

    `choice` tells how the plan was chosen; without it, the plan was given. Thresholds are tuned on
    the validation split, before, and kept in the config of the model. Raises UserError if an
    output is not finite.
    """
    began = time.perf_counter()
    if trained.training.thresholds == "tuned":
        _tune_thresholds(trained, data)
    predictions = predict(trained.predictor, data.test, trained.training)
    if not np.isfinite(predictions.logits).all():
        raise UserError("the outputs of the trained model are not finite", SMALLER_RATE)
    plain = replace(predictions, thresholds=None)
    baselines = {}
    for name in config.baselines:
        outputs = BASELINES[name](trained.checkpoint.task, data)
        baselines[name] = _metrics(outputs, plain, data.labels, config)
    evaluation = replace(measure(predictions, data.labels, config), baselines=baselines)
    if predictions.thresholds is not None:
        chosen_on = "validation" if data.validation is not None else "train, out of fold"
        thresholds = _describe_thresholds(predictions, data.labels, config, chosen_on)
        evaluation = replace(evaluation, thresholds=thresholds)
    choice = choice or Choice(trained.plan, requested=trained.plan.strategy)
    return _record(trained, choice, data, evaluation, time.perf_counter() - began)


def _tune_thresholds(trained: Trained, data: Data) -> None:
    """Write tuned thresholds into the model config; a solved head has its own out-of-fold ones."""
    if data.validation is not None:
        held_out = predict(trained.predictor, data.validation, trained.training)
        chosen = choose_thresholds(held_out.labels, held_out.outputs)
        keep_thresholds(trained.model.config, chosen)
    elif read_thresholds(trained.model.config) is None:
        log.warning("--thresholds tuned: nothing could be held out, so all stay at 0.5")


def _describe_thresholds(
    predictions: Predictions, label_names: tuple[str, ...], config: EvaluationConfig, chosen_on: str
) -> facts.ThresholdFacts:
    plain = replace(predictions, thresholds=None)
    measured = _metrics(plain.outputs, plain, label_names, config)
    decisions = [name for name in measured if find_metric(name, plain.problem_type).decides]
    assert predictions.thresholds is not None
    return facts.ThresholdFacts(
        values=dict(zip(label_names, predictions.thresholds.tolist(), strict=True)),
        chosen_on=chosen_on,
        plain={name: measured[name] for name in decisions},
    )


def measure(
    predictions: Predictions,
    label_names: tuple[str, ...],
    config: EvaluationConfig,
    split: str = "test",
) -> Evaluation:
    """Metrics of predictions with their intervals, of all rows and of each class; no baselines."""
    return Evaluation(
        split=split,
        n=len(predictions.ids),
        metrics=_metrics(predictions.outputs, predictions, label_names, config),
        baselines={},
        **describe(predictions, label_names, config.confidence),
    )


def estimate(metric: Metric, labels: np.ndarray, outputs: np.ndarray, level: float) -> Estimate:
    """A metric with its interval: Wilson's for a proportion of the examples, else bootstrap."""
    if metric.is_proportion:
        n = len(labels)
        return share_interval(round(metric.score(labels, outputs) * n), n, level)
    return bootstrap_interval(metric.score, labels, outputs, level)


def _metrics(
    outputs: np.ndarray,
    predictions: Predictions,
    label_names: tuple[str, ...],
    config: EvaluationConfig,
) -> dict[str, Estimate]:
    """The metrics of outputs for the rows of `predictions`."""
    labels = predictions.labels
    problem_type = predictions.problem_type
    if predictions.row_of_word is not None:
        found = load_tag_metrics(config.metrics, label_names)
        counts = count_outputs(outputs, predictions, label_names)
        drawn = resample(counts)
        return {
            name: estimate_score(metric.score, counts, drawn, config.confidence)
            for name, metric in found.items()
        }
    names = config.metrics or SCORING[problem_type].default_metrics
    metrics = {name: load_metric(name, problem_type).at(predictions.thresholds) for name in names}
    level = config.confidence
    return {name: estimate(each, labels, outputs, level) for name, each in metrics.items()}


def _record(
    trained: Trained, choice: Choice, data: Data, evaluation: Evaluation, evaluate_s: float
) -> RunRecord:
    base = trained.checkpoint.provenance
    plan = trained.plan
    return RunRecord(
        task=trained.checkpoint.task.name,
        problem_type=trained.predictor.problem_type,
        seed=trained.training.seed,
        base_model=facts.BaseModelFacts(base.id, base.revision, base.license),
        dataset=_dataset(data),
        strategy=facts.StrategyFacts(
            requested=choice.requested,
            used=plan.strategy,
            reasons=list(choice.reasons),
            pooling=plan.pooling,
            evidence=list(choice.trials),
        ),
        phases=list(trained.phases),
        evaluation=evaluation,
        timings=_timings(trained, choice, data, evaluate_s),
        peak_memory_bytes=_peak_memory(),
        environment=_environment(trained),
        model=_model(trained),
        card=facts.CardFacts(),
    )


def _dataset(data: Data) -> facts.DatasetFacts:
    origin = data.origin
    return facts.DatasetFacts(
        id=origin.id,
        revision=origin.revision,
        license=origin.license,
        description=origin.description,
        fingerprint=data.fingerprint,
        labels=list(data.labels),
        splits=facts.SplitSizes(len(data.train), len(data.validation or ()), len(data.test)),
        dropped=[facts.DroppedExample(row["id"], row["reason"]) for row in data.dropped],
        cut=list(data.cut),
        columns=dict(data.columns),
        image_kinds=dict(data.image_kinds) or None,
    )


def _timings(trained: Trained, choice: Choice, data: Data, evaluate_s: float) -> facts.Timings:
    load_s = data.seconds + trained.checkpoint.seconds
    frozen_s = sum(phase.frozen_seconds or 0.0 for phase in trained.phases)
    train_s = sum(phase.seconds for phase in trained.phases)
    total_s = load_s + choice.seconds + frozen_s + train_s + evaluate_s
    return facts.Timings(load_s, frozen_s, train_s, evaluate_s, total_s, choice.seconds)


def _model(trained: Trained) -> facts.ModelFacts:
    model = trained.model
    checkpoint = trained.checkpoint
    is_pretrained = trained.plan.init == "pretrained"
    return facts.ModelFacts(
        class_=type(model).__name__,
        architecture=model.config.model_type,
        parameters=parameter_count(model),
        new_parameters=list(checkpoint.new_parameters) if is_pretrained else ["all"],
        fixed_parameters=list(checkpoint.fixed),
        hyperparameters=_hyperparameters(trained),
        padding=trained.encoder.padding,
    )


def _hyperparameters(trained: Trained) -> dict[str, Any]:
    """The hyperparameters that had an effect: those of steps only where a phase was in steps."""
    plan = trained.plan
    arguments = trained.training
    found: dict[str, Any] = {}
    rates = {}
    for phase in plan.phases:
        if phase.solver == "trainer":
            rates[phase.name] = {stage: phase.lr_scale[stage] for stage in phase.trainable}
    if rates:
        sizes = list(dict.fromkeys(phase.batch_size for phase in trained.phases if phase.steps))
        found |= {
            "learning_rate": plan.learning_rate,
            "rates": rates,
            "batch_size": sizes[0] if len(sizes) == 1 else ", ".join(map(str, sizes)),
            "optimizer": str(arguments.optim.value),
            "weight_decay": plan.weight_decay,
        }
        if plan.layer_decay != 1:
            found["layer_decay"] = f"{plan.layer_decay:g} a layer, from the head down"
        found |= {
            "lr_scheduler": str(arguments.lr_scheduler_type.value),
            "warmup": arguments.warmup_steps,
            "max_grad_norm": arguments.max_grad_norm,
            "label_smoothing": arguments.label_smoothing_factor,
        }
    found["class_weights"] = arguments.class_weights
    # Only where a phase learned from changed images: cached activations are those of plain ones.
    if any(phase.augmentation for phase in trained.phases):
        found["augmentation"] = arguments.augmentation
    return {**found, "precision": _precision(arguments)}


def _precision(arguments: TrainingConfig) -> str:
    """What --bf16, --fp16 or the launcher's --mixed_precision name, else fp32.

    On a CPU fp16 is computed as fp32.
    """
    mixed = str(getattr(arguments, "mixed_precision", "no"))
    if arguments.bf16 or arguments.fp16:
        mixed = "bf16" if arguments.bf16 else "fp16"
    is_in_full = mixed == "no" or (mixed == "fp16" and arguments.device.type == "cpu")
    return "fp32" if is_in_full else mixed


def _environment(trained: Trained) -> dict[str, Any]:
    device = trained.training.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "hf_transfer": version("hf-transfer-learning"),
        **dict(zip(PACKAGES, map(version, PACKAGES), strict=True)),
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "processes": trained.training.world_size,
    }


def _peak_memory() -> int:
    """Peak bytes of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
