"""The tables and the picture of a comparison: pure functions of its records."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from matplotlib.figure import Figure
from scipy.stats import t as student

from hf_transfer.record import Estimate, RunRecord
from hf_transfer.sealed import write_atomically

log = logging.getLogger(__name__)

# The same in both parts of the picture, and in that of any other set of strategies.
COLOURS = {
    "head": "tab:green",
    "full": "tab:purple",
    "head_then_full": "tab:pink",
    "top_layers": "tab:red",
}
COLOURS |= {
    "gradual": "tab:brown",
    "contrastive": "tab:cyan",
    "lora": "tab:olive",
    "scratch": "tab:blue",
}
COLOURS |= {"raw_inputs": "tab:orange", "auto": "black"}

COLLAPSED = 0.05  # so far below the solved head a run has gone wrong


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


Records = Mapping[Cell, RunRecord]
Draws = dict[
    str, dict[int, dict[int, float]]
]  # row (strategy or baseline) -> budget -> seed -> value


def accuracies(records: Records) -> Draws:
    """The accuracy of every run, and of the baselines beside it."""
    values: Draws = {}
    for cell, record in records.items():
        rows = {cell.strategy: record.metrics["accuracy"].value}
        rows |= {name: metrics["accuracy"].value for name, metrics in record.baselines.items()}
        for row, value in rows.items():
            values.setdefault(row, {}).setdefault(cell.budget, {})[cell.seed] = value
    return values


def durations(records: Records, with_choice: bool = True) -> Draws:
    """The seconds of every run that learning took, without loading and evaluation."""
    values: Draws = {}
    for cell, record in records.items():
        parts = ("frozen_s", "train_s", *(("choose_s",) if with_choice else ()))
        seconds = sum(record.timings.get(part, 0.0) for part in parts)
        values.setdefault(cell.strategy, {}).setdefault(cell.budget, {})[cell.seed] = seconds
    return values


def mean_over_draws(values: Sequence[float], level: float) -> Estimate:
    """The mean with Student's t interval over the draws; with one draw the interval is all of 0..1."""
    n, mean = len(values), _mean(values)
    if n < 2:
        return Estimate(mean, 0.0, 1.0, level, n)
    half = float(student.ppf(0.5 + level / 2, n - 1)) * spread(values) / math.sqrt(n)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), level, n)


def spread(values: Sequence[float]) -> float:
    """The standard deviation over the draws; 0 where there is one."""
    if len(values) < 2:
        return 0.0
    return math.sqrt(sum((v - _mean(values)) ** 2 for v in values) / (len(values) - 1))


def accuracy_table(values: Draws) -> str:
    """Mean and standard deviation over the draws in per cent; the best of a column is bold."""
    best = {
        budget: max(round(_mean(list(row[budget].values())), 3) for row in values.values())
        for budget in _budgets(values)
    }

    def cell(draws: Sequence[float], budget: int) -> str:
        shown = f"{100 * _mean(draws):.1f} ± {100 * spread(draws):.1f}"
        return f"**{shown}**" if round(_mean(draws), 3) == best[budget] else shown

    return _table(values, cell)


def duration_table(values: Draws) -> str:
    """The mean seconds that learning took, trials of `auto` included."""
    return _table(values, lambda draws, _: _show_seconds(draws))


def auto_table(records: Records) -> str:
    """What `auto` chose, how far it is from the best single strategy, and what choosing cost."""
    values, alone, total = (
        accuracies(records),
        durations(records, with_choice=False),
        durations(records),
    )
    named = sorted({cell.strategy for cell in records} - {"auto"})
    rows: dict[str, dict[int, str]] = {}
    regrets = []

    def put(row: str, budget: int, text: str) -> None:
        rows.setdefault(row, {})[budget] = text

    for budget in _budgets(values):
        means = {
            name: 100 * _mean(list(values[name][budget].values())) for name in (*named, "auto")
        }
        best = max(named, key=lambda name: means[name])
        chosen = Counter(
            r.strategy["used"]
            for c, r in records.items()
            if (c.strategy, c.budget) == ("auto", budget)
        )
        put("best single strategy", budget, f"{best} {means[best]:.1f}")
        put("auto", budget, f"{means['auto']:.1f}")
        regrets.append(means[best] - means["auto"])
        put("regret, points", budget, f"{regrets[-1]:.1f}")
        put("chosen", budget, ", ".join(f"{name} {count}" for name, count in chosen.most_common()))
        put("seconds, trials included", budget, _show_seconds(list(total["auto"][budget].values())))
        put(
            "seconds of the chosen plan alone",
            budget,
            _show_seconds(list(alone["auto"][budget].values())),
        )
        if "head" in named:
            fallen = sum(
                values["auto"][budget][s] < v - COLLAPSED for s, v in values["head"][budget].items()
            )
            put("draws more than 5 points below head", budget, str(fallen))
    lines = [_header(_budgets(values))]
    lines += [f"| {name} | " + " | ".join(cells.values()) + " |" for name, cells in rows.items()]
    return "\n".join(lines) + f"\n\nMean regret: {_mean(regrets):.2f} points."


def as_picture(values: Draws, level: float) -> Figure:
    """Accuracy by labels a class, a line a strategy; beside it what each gains on the head alone, draw by draw.

    Where the lines of the second cross zero, more labels have changed what is best.
    """
    figure = Figure(figsize=(12 if "head" in values else 7, 5.5), layout="constrained")
    accuracy, *others = figure.subplots(1, 2 if "head" in values else 1, squeeze=False)[0]
    shown = {name: row for name, row in values.items() if name != "majority"}
    for name, row in shown.items():
        _draw_line(
            accuracy, name, {budget: list(draws.values()) for budget, draws in row.items()}, level
        )
    lowest = min(
        100 * _mean(list(draws.values())) for row in shown.values() for draws in row.values()
    )
    accuracy.set(ylabel="accuracy on the test split (%)", ylim=(max(0, lowest - 5), 101))
    accuracy.legend(ncols=2, loc="best")
    for axes in others:
        axes.axhline(0, color=COLOURS["head"], linewidth=1.5)
        for name in [name for name in shown if name not in ("head", "scratch", "raw_inputs")]:
            gains = {
                k: [v - values["head"][k][s] for s, v in d.items()] for k, d in values[name].items()
            }
            _draw_line(axes, name, gains, level, bars=False)
        axes.set(ylabel="gain on head alone (points, mean of the draws)")
    for axes in (accuracy, *others):
        axes.set(xlabel="labels a class", xscale="log")
        axes.set_xticks(_budgets(values), [str(budget) for budget in _budgets(values)])
        axes.minorticks_off()
    return figure


def _draw_line(
    axes: Any, name: str, by_budget: Mapping[int, list[float]], level: float, bars: bool = True
) -> None:
    means = [100 * _mean(draws) for draws in by_budget.values()]
    found = [mean_over_draws(draws, level) for draws in by_budget.values()]
    errors = (
        [[100 * (e.value - e.low) for e in found], [100 * (e.high - e.value) for e in found]]
        if bars
        else None
    )
    style: dict[str, Any] = {"label": name, "color": COLOURS.get(name), "linewidth": 1.3}
    if name == "auto":  # a broad band behind the line of what it chose
        style |= {"linewidth": 6, "alpha": 0.3, "zorder": 1}
    axes.errorbar(
        list(by_budget),
        means,
        yerr=errors,
        marker="o",
        capsize=2,
        markersize=4,
        elinewidth=0.5,
        **style,
    )


def write_tables(records: Records, folder: Path, level: float) -> str:
    """The tables as Markdown; the main process writes them and the picture into `folder`."""
    values = accuracies(records)
    parts = [accuracy_table(values), "Seconds of learning:", duration_table(durations(records))]
    if "auto" in values and len({cell.strategy for cell in records}) > 1:
        parts += ["What `auto` did:", auto_table(records)]
    text = "\n\n".join(parts)
    if PartialState().is_main_process:
        write_atomically(folder / "table.md", text + "\n")
        as_picture(values, level).savefig(folder / "table.png", dpi=110)
        log.info("%s", text)
    return text


def _show_seconds(values: Sequence[float]) -> str:
    mean = _mean(values)
    return f"{mean:.1f}" if mean < 9.95 else f"{mean:.0f}"


def _table(values: Draws, cell: Callable[[Sequence[float], int], str]) -> str:
    lines = [_header(_budgets(values))]
    for name, row in values.items():
        cells = (cell(list(row[budget].values()), budget) for budget in _budgets(values))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _header(budgets: Sequence[int]) -> str:
    return (
        "| labels a class | " + " | ".join(map(str, budgets)) + " |\n|---|" + "---|" * len(budgets)
    )


def _budgets(values: Draws) -> list[int]:
    return sorted(next(iter(values.values())))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
