"""What a run found: plain facts, to JSON and back. Reads no heavy library."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Estimate:
    """A measured value with its interval: `low` and `high` at confidence `level`, from `n` examples."""

    value: float
    low: float
    high: float
    level: float
    n: int


@dataclass(frozen=True)
class RunRecord:
    """All facts of a run, as they stand in record.json (DESIGN, section 4)."""

    task: str
    problem_type: str
    seed: int
    base_model: dict[str, Any]
    dataset: dict[str, Any]
    strategy: dict[str, Any]
    phases: list[dict[str, Any]]
    evaluation: dict[str, Any]
    timings: dict[str, float]
    peak_memory_bytes: int
    environment: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The record as indented JSON; keys in a stable order."""
        facts = asdict(self)
        return json.dumps(
            {"schema": facts.pop("schema"), **facts}, indent=2, ensure_ascii=False, allow_nan=False
        )

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The test metrics by name."""
        return {name: Estimate(**value) for name, value in self.evaluation["metrics"].items()}

    @property
    def baselines(self) -> dict[str, dict[str, Estimate]]:
        """The metrics of each baseline by name."""
        return {
            baseline: {name: Estimate(**value) for name, value in metrics.items()}
            for baseline, metrics in self.evaluation["baselines"].items()
        }


def read_record(path: Path) -> RunRecord:
    """The record in a `record.json`; raises ValueError if it has another schema."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {facts.get('schema')}, this version reads {SCHEMA}")
    return RunRecord(**facts)
