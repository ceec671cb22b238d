"""Strategies x label budgets x draws: a run each, one table and one picture from their records."""

import copy
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from accelerate import PartialState
from matplotlib.figure import Figure
from scipy.stats import t as student
from tqdm.auto import tqdm

from hf_transfer.command import only_warnings
from hf_transfer.config import RunConfig, Strategy
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.evaluation.evaluate import evaluate
from hf_transfer.models.checkpoint import load_checkpoint
from hf_transfer.record import Estimate, RunRecord, read_record
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import Task
from hf_transfer.training.engine import run_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a strategy, the labels a class, and the seed that draws them."""

    strategy: str
    budget: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's record, without its ending."""
        return f"{self.strategy}-{self.budget}-{self.seed}"


def compare(config: RunConfig, task: Task) -> dict[Cell, RunRecord]:
    """The records of all cells; those that an earlier call left in the output folder are read, not run again.

    The draws are paired: within a draw all strategies learn from the same labels, nested over the budgets. Raises
    UserError if the folder holds a study of something else.
    """
    state, folder = PartialState(), config.output_dir / "runs"
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        _require_same_study(config, config.output_dir / "study.json")
    state.wait_for_everyone()
    records = {}
    for cell in tqdm(list(_cells(config)), desc="runs", disable=not state.is_main_process):
        path = folder / f"{cell.name}.json"
        if not path.exists():
            with only_warnings():
                record = _run(cell, config, task)
            if state.is_main_process:
                _write_whole(path, record.to_json())
            state.wait_for_everyone()
        records[cell] = read_record(path)
    return records


def _require_same_study(config: RunConfig, path: Path) -> None:
    """Raise UserError, naming the differences, if the folder's runs were asked for with other settings."""
    ignored = {"output_dir", "logging_dir", "disable_tqdm", "overwrite_output_dir", "hub_token"}
    settings = {**asdict(config.model), **asdict(config.data), **asdict(config.evaluation), **asdict(config.task)}
    settings |= {name: value for name, value in config.training.to_dict().items() if name not in ignored}
    now = json.loads(json.dumps(settings, default=str))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
        if changed:
            raise UserError(f"{path.parent} holds a study with other {', '.join(changed)}", "name another --output_dir")
    _write_whole(path, json.dumps(now, indent=2))


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def mean_over_draws(values: Sequence[float], level: float) -> Estimate:
    """The mean with Student's t interval over the draws; with one draw the interval is all of 0..1."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return Estimate(mean, 0.0, 1.0, level, n)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(student.ppf(0.5 + level / 2, n - 1)) * deviation / math.sqrt(n)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), level, n)


def summarize(records: dict[Cell, RunRecord], level: float) -> dict[str, dict[int, Estimate]]:
    """Row (strategy or baseline) -> budget -> mean accuracy over the draws."""
    values: dict[str, dict[int, dict[int, float]]] = {}
    for cell, record in records.items():
        rows = {cell.strategy: record.metrics["accuracy"].value}
        rows |= {name: metrics["accuracy"].value for name, metrics in record.baselines.items()}
        for row, value in rows.items():
            values.setdefault(row, {}).setdefault(cell.budget, {})[cell.seed] = value
    return {
        row: {budget: mean_over_draws(list(draws.values()), level) for budget, draws in sorted(budgets.items())}
        for row, budgets in values.items()
    }


def as_markdown(table: dict[str, dict[int, Estimate]]) -> str:
    """The table in per cent: mean and half the width of its interval; the best of a column is bold."""
    budgets = list(next(iter(table.values())))
    best = {budget: max(round(row[budget].value, 3) for row in table.values()) for budget in budgets}
    lines = ["| labels a class | " + " | ".join(map(str, budgets)) + " |", "|---|" + "---|" * len(budgets)]
    for name, row in table.items():
        cells = []
        for budget, e in row.items():
            shown = f"{100 * e.value:.1f} ± {50 * (e.high - e.low):.1f}"
            cells.append(f"**{shown}**" if round(e.value, 3) == best[budget] else shown)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_picture(table: dict[str, dict[int, Estimate]]) -> Figure:
    """Accuracy by labels a class, a line a strategy: where they cross, more labels change what is best."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, row in table.items():
        if name == "majority":
            continue
        values = [100 * e.value for e in row.values()]
        spread = [[100 * (e.value - e.low) for e in row.values()], [100 * (e.high - e.value) for e in row.values()]]
        axes.errorbar(list(row), values, yerr=spread, label=name, marker="o", capsize=3, markersize=4)
    budgets = list(next(iter(table.values())))
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.set(xlabel="labels a class", ylabel="accuracy on the test split (%)", ylim=(None, 100))
    axes.legend()
    return figure


def write_tables(records: dict[Cell, RunRecord], folder: Path, level: float) -> str:
    """The table as Markdown; the main process writes it and the picture into `folder`."""
    table = summarize(records, level)
    text = as_markdown(table)
    if PartialState().is_main_process:
        _write_whole(folder / "table.md", text + "\n")
        as_picture(table).savefig(folder / "table.png", dpi=110)
        log.info("%s", text)
    return text


def _cells(config: RunConfig) -> Iterator[Cell]:
    for budget in config.study.budgets:
        for draw in range(config.study.draws):
            for strategy in config.study.strategies:
                yield Cell(strategy, budget, config.training.seed + draw)


def _run(cell: Cell, config: RunConfig, task: Task) -> RunRecord:
    asked = replace(config.data, examples_per_class=cell.budget, problem_type="single_label_classification")
    data = load_data(asked, task, cell.seed)
    checkpoint = load_checkpoint(**config.model.source, task=task, labels=data.labels, seed=cell.seed)
    training = copy.copy(config.training)
    training.seed = cell.seed
    transfer = replace(config.transfer, strategy=cast(Strategy, cell.strategy))
    plan = choose_plan(transfer, checkpoint, data, training, config.data.max_length)
    return evaluate(run_plan(plan, checkpoint, data, training, config.data.max_length), data, config.evaluation)
