"""A record with made-up facts, for tests of what is a pure function of records."""

from dataclasses import asdict, replace
from typing import Any

from hf_transfer.record import Estimate, RunRecord


def _estimate(value: float, spread: float = 0.02, n: int = 200) -> dict[str, Any]:
    return asdict(Estimate(value, value - spread, value + spread, 0.95, n))


def example_record(**changes: Any) -> RunRecord:
    """A run of head_then_full on three classes of pictures, both base model and dataset on the Hub."""
    metrics = {
        "accuracy": _estimate(0.912),
        "f1_macro": _estimate(0.901),
        "log_loss": _estimate(0.31),
    }
    majority = {
        "accuracy": _estimate(0.4),
        "f1_macro": _estimate(0.19),
        "log_loss": _estimate(1.09),
    }
    per_class = [
        {
            "label": label,
            "n": n,
            "precision": _estimate(p),
            "recall": _estimate(r),
            "f1": _estimate(f),
        }
        for label, n, p, r, f in (
            ("ant", 80, 0.95, 0.9, 0.92),
            ("bee", 70, 0.9, 0.95, 0.92),
            ("cow", 50, 0.86, 0.88, 0.87),
        )
    ]
    phase = {
        "trainable_parameters": 1539,
        "epochs": 4.0,
        "steps": 40,
        "best_step": None,
        "seconds": 1.5,
        "frozen_passes": 0,
        "cache": "off",
        "cached_bytes": 0,
        "history": [
            {"step": 10, "loss": 1.0, "epoch": 1.0},
            {"step": 40, "loss": 0.5, "epoch": 4.0},
        ],
    }
    full_history = [
        {"step": 20, "loss": 0.4},
        {"step": 20, "eval_loss": 0.45, "eval_accuracy": 0.9},
    ]
    record = RunRecord(
        task="image-classification",
        problem_type="single_label_classification",
        seed=42,
        base_model={"id": "org/vit", "revision": "a" * 40, "license": "mit"},
        dataset={
            "id": "org/animals",
            "revision": "b" * 40,
            "license": "cc0-1.0",
            "description": None,
            "fingerprint": "0123abcd",
            "labels": ["ant", "bee", "cow"],
            "splits": {"train": 1000, "validation": 100, "test": 200},
            "dropped": [],
            "cut": ["test"],
        },
        strategy={
            "requested": "head_then_full",
            "used": "head_then_full",
            "reasons": ["it was asked for by name"],
        },
        phases=[
            {"name": "head", **phase},
            {
                "name": "full",
                **phase,
                "trainable_parameters": 300000,
                "best_step": 20,
                "history": full_history,
            },
        ],
        evaluation={
            "split": "test",
            "n": 200,
            "metrics": metrics,
            "per_class": per_class,
            "confusion": [[0, 0, 72], [0, 1, 8], [1, 1, 66], [1, 2, 4], [2, 2, 44], [2, 0, 6]],
            "baselines": {"majority": majority},
        },
        timings={"load_s": 1.0, "frozen_s": 0.0, "train_s": 3.0, "evaluate_s": 0.5, "total_s": 4.5},
        peak_memory_bytes=500 * 2**20,
        environment={
            "hf_transfer": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "device": "cpu",
            "processes": 1,
        },
        model={
            "class": "ViTForImageClassification",
            "architecture": "vit",
            "parameters": 300000,
            "new_parameters": ["classifier.weight", "classifier.bias"],
            "hyperparameters": {
                "learning_rate": 1e-3,
                "rates": {"head": {"head": 10.0, "body": 0.0}, "full": {"head": 1.0, "body": 1.0}},
                "batch_size": 32,
            },
        },
        card={"name": "me/animals", "license": None, "language": None},
    )
    return replace(record, **changes)


def multi_label_record() -> RunRecord:
    """The same run for any number of the three labels a picture."""
    names = ("f1_micro", "f1_macro", "exact_match", "log_loss")
    metrics = {
        name: _estimate(value) for name, value in zip(names, (0.91, 0.9, 0.81, 0.3), strict=True)
    }
    record = example_record(problem_type="multi_label_classification")
    shares = {name: _estimate(0.1) for name in names}
    evaluation = {
        **record.evaluation,
        "metrics": metrics,
        "baselines": {"majority": shares, "raw_inputs": shares},
    }
    del evaluation["confusion"]
    return replace(record, evaluation=evaluation)


def regression_record() -> RunRecord:
    """The same run for a number a picture, of prices in the hundreds of thousands."""
    metrics = {
        "rmse": _estimate(12345.6, 500),
        "mae": _estimate(9876.5, 400),
        "r2": _estimate(0.81),
    }
    mean = {"rmse": _estimate(28000.0, 900), "mae": _estimate(21000.0, 800), "r2": _estimate(0.0)}
    record = example_record(problem_type="regression")
    evaluation = {
        **{key: value for key, value in record.evaluation.items() if key != "confusion"},
        "metrics": metrics,
        "per_class": [],
        "points": [[310000.0, 305000.0], [250000.0, 262000.0], [199000.0, 201000.0]],
        "baselines": {"majority": mean},
    }
    return replace(record, dataset={**record.dataset, "labels": ["price"]}, evaluation=evaluation)
