import json
from pathlib import Path

import pytest

from hf_transfer.record import read_record
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


def test_a_record_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    record = example_record()
    path = tmp_path / "record.json"
    path.write_text(record.to_json())
    assert read_record(path) == record


def test_a_record_has_every_promised_key() -> None:
    facts = json.loads(example_record().to_json())
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
    with pytest.raises(ValueError, match="schema 99"):
        read_record(path)
