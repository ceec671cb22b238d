import json
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.errors import UserError
from hf_transfer.package_files import package_folder
from hf_transfer.record import (
    CardFacts,
    Estimate,
    Evaluation,
    ModelFacts,
    PhaseFacts,
    SkippedStep,
    StrategyFacts,
    Trial,
    from_json,
    read_record,
    to_json,
)
from tests.unit.sharing.example import example_record

# The keys that DESIGN promises to whoever reads a record, at the top and below.
PROMISED = {
    "schema": None,
    "task": None,
    "problem_type": None,
    "seed": None,
    "base_model": {"id", "revision", "license"},
    "dataset": {"id", "revision", "fingerprint", "labels", "splits", "dropped"},
    "strategy": {"requested", "used", "reasons"},
    "phases": None,
    "evaluation": {"split", "n", "metrics", "per_class", "baselines"},
    "timings": {"load_s", "frozen_s", "train_s", "evaluate_s", "total_s"},
    "peak_memory_bytes": None,
    "environment": {"torch", "transformers", "device", "processes"},
}
ESTIMATE = {"value": 0.9, "low": 0.8, "high": 0.95, "level": 0.95, "n": 10}
PER_CLASS = [
    {"label": "ant", "n": 10, "precision": ESTIMATE, "recall": ESTIMATE, "f1": ESTIMATE},
]
EVALUATION = {
    "split": "test",
    "n": 10,
    "metrics": {"accuracy": ESTIMATE},
    "baselines": {"majority": {"accuracy": ESTIMATE}},
    "per_class": PER_CLASS,
}
CACHE = {"frozen_passes": 2, "cache": "miss", "cached_bytes": 4096, "frozen_seconds": 0.5}
SOLVED = {
    "name": "head",
    "trainable_parameters": 30,
    "epochs": 0.0,
    "steps": 0,
    "best_step": None,
    "seconds": 0.1,
    **CACHE,
    "history": [],
    "solved": {"strength": 0.01, "penalty": 1.0, "cross_validated": True},
}
STEPPED = {
    "name": "full",
    "loss": "task",
    "batch_size": 32,
    "trainable_parameters": 3000,
    "epochs": 2.0,
    "steps": 4,
    "best_step": 2,
    "history": [
        {"step": 2, "epoch": 1.0, "loss": 0.5, "learning_rate": 1e-3},
        {"step": 2, "epoch": 1.0, "eval_loss": 0.6, "eval_accuracy": 0.7},
    ],
    "skipped_steps": [],
    "resumed_at": [],
    "seconds": 3.0,
    **CACHE,
}
TRIAL = {"strategy": "head", "score": 0.75, "n": 12, "seconds": 1.5}
MODEL = {
    "class": "ViTForImageClassification",
    "architecture": "vit",
    "parameters": 300,
    "new_parameters": ["all"],
    "fixed_parameters": [],
    "hyperparameters": {"learning_rate": 1e-3, "rates": {"full": {"head": 1.0, "body": 1.0}}},
}
SAVED = {**MODEL, "files": ["README.md"], "adapter": None}
EXAMPLES: list[tuple[type, dict[str, Any]]] = [
    (PhaseFacts, SOLVED),
    (PhaseFacts, {**SOLVED, "augmentation": "light"}),
    (PhaseFacts, STEPPED),
    (PhaseFacts, {**STEPPED, "best_step": None, "resumed_at": [2, 3], "augmentation": "photo"}),
    (PhaseFacts, {**STEPPED, "skipped_steps": [{"step": 1, "ids": ["train/0", "train/7"]}]}),
    (
        PhaseFacts,
        {
            **STEPPED,
            "kept": "last step",
            "candidates": [{"name": "last step", "value": 0.4}, {"name": "mean", "value": 0.5}],
        },
    ),
    (Trial, TRIAL),
    (Trial, {**TRIAL, "gain": 0.0, "standard_error": 0.125}),
    (StrategyFacts, {"requested": "auto", "used": "head", "reasons": [], "pooling": "own"}),
    (
        StrategyFacts,
        {
            "requested": "auto",
            "used": "head",
            "reasons": ["so head is used"],
            "pooling": "own",
            "evidence": [TRIAL, {**TRIAL, "gain": 0.5, "standard_error": 0.1}],
        },
    ),
    (Evaluation, EVALUATION),
    (Evaluation, {**EVALUATION, "confusion": [[0, 0, 9], [0, 1, 1]]}),
    (Evaluation, {**EVALUATION, "per_class": [], "points": [[1.5, 2.0]]}),
    (ModelFacts, MODEL),
    (ModelFacts, SAVED),
    (ModelFacts, {**SAVED, "adapter": "lora"}),
    (CardFacts, {}),
    (CardFacts, {"name": "me/animals", "license": None, "language": None}),
]


def test_a_record_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    record = example_record()
    path = tmp_path / "record.json"
    path.write_text(record.to_json_string())
    assert read_record(path) == record


def test_a_record_has_every_promised_key() -> None:
    facts = json.loads(example_record().to_json_string())
    assert facts["schema"] == 1
    for key, below in PROMISED.items():
        assert key in facts
        assert (below or set()) <= set(facts[key] if below else ())
    phase = {
        "name",
        "trainable_parameters",
        "epochs",
        "seconds",
        "frozen_passes",
        "cache",
        "cached_bytes",
    }
    assert phase <= set(facts["phases"][0])
    assert set(facts["evaluation"]["metrics"]["accuracy"]) == {"value", "low", "high", "level", "n"}


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 99"):
        read_record(path)


@pytest.mark.parametrize(("kind", "facts"), EXAMPLES)
def test_facts_of_each_case_have_the_same_keys_after_a_round_trip(
    kind: type, facts: dict[str, Any]
) -> None:
    assert to_json(from_json(kind, json.loads(json.dumps(facts)))) == facts


def test_facts_are_typed_at_every_depth() -> None:
    phase = from_json(PhaseFacts, {**STEPPED, "skipped_steps": [{"step": 1, "ids": ["train/0"]}]})
    assert phase.history[1].eval_loss == 0.6
    assert phase.history[1].loss is None
    assert phase.skipped_steps == [SkippedStep(1, ["train/0"])]
    assert phase.solved is None
    evaluation = from_json(Evaluation, EVALUATION)
    assert evaluation.baselines["majority"]["accuracy"] == Estimate(**ESTIMATE)
    assert evaluation.per_class[0].f1.value == 0.9


def test_the_record_of_the_shipped_model_is_written_back_as_it_was_read() -> None:
    path = package_folder("assets") / "letters-resnet" / "record.json"
    assert json.loads(read_record(path).to_json_string()) == json.loads(path.read_text())


def test_keys_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    facts = json.loads(example_record().to_json_string())
    newer = {**facts, "calibration": {"temperature": 1.1}}
    newer["phases"] = [{**phase, "energy": 3} for phase in facts["phases"]]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(newer))
    assert read_record(path) == example_record()
