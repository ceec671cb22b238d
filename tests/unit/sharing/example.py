"""A record with made-up facts, for tests of what is a pure function of records."""

from dataclasses import replace
from typing import Any

from hf_transfer.record import (
    BaseModelFacts,
    CardFacts,
    ClassMetrics,
    DatasetFacts,
    Estimate,
    Evaluation,
    LoggedStep,
    ModelFacts,
    PhaseFacts,
    RunRecord,
    SplitSizes,
    StrategyFacts,
    Timings,
)

HEAD = PhaseFacts(
    name="head",
    trainable_parameters=1539,
    epochs=4.0,
    steps=40,
    best_step=None,
    seconds=1.5,
    frozen_passes=0,
    cache="off",
    cached_bytes=0,
    history=[LoggedStep(10, epoch=1.0, loss=1.0), LoggedStep(40, epoch=4.0, loss=0.5)],
)
FULL = replace(
    HEAD,
    name="full",
    trainable_parameters=300000,
    best_step=20,
    history=[LoggedStep(20, loss=0.4), LoggedStep(20, eval_loss=0.45, eval_accuracy=0.9)],
)


def _estimate(value: float, spread: float = 0.02, n: int = 200) -> Estimate:
    return Estimate(value, value - spread, value + spread, 0.95, n)


def _class(label: str, n: int, precision: float, recall: float, f1: float) -> ClassMetrics:
    return ClassMetrics(label, n, _estimate(precision), _estimate(recall), _estimate(f1))


def _evaluation() -> Evaluation:
    metrics = {"accuracy": 0.912, "f1_macro": 0.901, "log_loss": 0.31}
    majority = {"accuracy": 0.4, "f1_macro": 0.19, "log_loss": 1.09}
    return Evaluation(
        split="test",
        n=200,
        metrics={name: _estimate(value) for name, value in metrics.items()},
        per_class=[
            _class("ant", 80, 0.95, 0.9, 0.92),
            _class("bee", 70, 0.9, 0.95, 0.92),
            _class("cow", 50, 0.86, 0.88, 0.87),
        ],
        confusion=[[0, 0, 72], [0, 1, 8], [1, 1, 66], [1, 2, 4], [2, 2, 44], [2, 0, 6]],
        baselines={"majority": {name: _estimate(value) for name, value in majority.items()}},
    )


def example_record(**changes: Any) -> RunRecord:
    """A run of head_then_full on three classes of images, base model and dataset on the Hub."""
    record = RunRecord(
        task="image-classification",
        problem_type="single_label_classification",
        seed=42,
        base_model=BaseModelFacts("org/vit", "a" * 40, "mit"),
        dataset=DatasetFacts(
            id="org/animals",
            revision="b" * 40,
            license="cc0-1.0",
            description=None,
            fingerprint="0123abcd",
            labels=["ant", "bee", "cow"],
            splits=SplitSizes(train=1000, validation=100, test=200),
            dropped=[],
            cut=["test"],
        ),
        strategy=StrategyFacts(
            "head_then_full", "head_then_full", ["the strategy was requested by name"]
        ),
        phases=[HEAD, FULL],
        evaluation=_evaluation(),
        timings=Timings(load_s=1.0, frozen_s=0.0, train_s=3.0, evaluate_s=0.5, total_s=4.5),
        peak_memory_bytes=500 * 2**20,
        environment={
            "hf_transfer": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "device": "cpu",
            "processes": 1,
        },
        model=ModelFacts(
            class_="ViTForImageClassification",
            architecture="vit",
            parameters=300000,
            new_parameters=["classifier.weight", "classifier.bias"],
            hyperparameters={
                "learning_rate": 1e-3,
                "rates": {"head": {"head": 10.0, "body": 0.0}, "full": {"head": 1.0, "body": 1.0}},
                "batch_size": 32,
            },
        ),
        card=CardFacts("me/animals", license=None, language=None),
    )
    return replace(record, **changes)


def multi_label_record() -> RunRecord:
    """The same run for any number of the three labels an image."""
    metrics = {"f1_micro": 0.91, "f1_macro": 0.9, "exact_match": 0.81, "log_loss": 0.3}
    shares = dict.fromkeys(metrics, _estimate(0.1))
    evaluation = replace(
        _evaluation(),
        metrics={name: _estimate(value) for name, value in metrics.items()},
        baselines={"majority": shares, "raw_inputs": shares},
        confusion=None,
    )
    return example_record(problem_type="multi_label_classification", evaluation=evaluation)


def regression_record() -> RunRecord:
    """The same run for a number an image, of prices in the hundreds of thousands."""
    metrics = {
        "rmse": _estimate(12345.6, 500),
        "mae": _estimate(9876.5, 400),
        "r2": _estimate(0.81),
    }
    mean = {"rmse": _estimate(28000.0, 900), "mae": _estimate(21000.0, 800), "r2": _estimate(0.0)}
    evaluation = replace(
        _evaluation(),
        metrics=metrics,
        baselines={"majority": mean},
        per_class=[],
        confusion=None,
        points=[[310000.0, 305000.0], [250000.0, 262000.0], [199000.0, 201000.0]],
    )
    record = example_record(problem_type="regression", evaluation=evaluation)
    return replace(record, dataset=replace(record.dataset, labels=["price"]))
