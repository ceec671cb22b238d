"""The tables and the plot of a comparison: pure functions of its records."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
from accelerate import PartialState
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student

from hf_transfer.record import Estimate, RunRecord
from hf_transfer.sealed import write_atomically

log = logging.getLogger(__name__)

# The same in both parts of the plot, and in that of any other set of strategies.
COLOURS = {
    "head": "tab:green",
    "full": "tab:purple",
    "head_then_full": "tab:pink",
    "top_layers": "tab:red",
    "gradual": "tab:brown",
    "contrastive": "tab:cyan",
    "lora": "tab:olive",
    "scratch": "tab:blue",
    "raw_inputs": "tab:orange",
    "auto": "black",
}

COLLAPSE = 0.05  # accuracy below that of the solved head at which a run has gone wrong


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: strategy, budget (labels per class), and the seed of the draw."""

    strategy: str
    budget: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's record, without its suffix."""
        return f"{self.strategy}-{self.budget}-{self.seed}"


Records = Mapping[Cell, RunRecord]
Row = dict[int, dict[int, float]]  # budget -> seed -> value
Values = dict[str, Row]  # by strategy or baseline


def accuracies(records: Records) -> Values:
    """The accuracy of each run, and of the baselines in its record."""
    values: Values = {}
    for cell, record in records.items():
        for name, metrics in {cell.strategy: record.metrics, **record.baselines}.items():
            draws = values.setdefault(name, {}).setdefault(cell.budget, {})
            draws[cell.seed] = metrics["accuracy"].value
    return values


def durations(records: Records, with_choice: bool = True) -> Values:
    """The seconds that each run spent on learning, without loading and evaluation."""
    values: Values = {}
    for cell, record in records.items():
        timings = record.timings
        seconds = timings.frozen_s + timings.train_s
        seconds += (timings.choose_s or 0.0) if with_choice else 0.0
        values.setdefault(cell.strategy, {}).setdefault(cell.budget, {})[cell.seed] = seconds
    return values


def mean_estimate(values: Collection[float], level: float) -> Estimate:
    """The mean with Student's t interval over the draws; with one draw the interval is 0 to 1."""
    n = len(values)
    mean = _mean(values)
    if n < 2:
        return Estimate(mean, 0.0, 1.0, level, n)
    half = float(student.ppf(0.5 + level / 2, n - 1)) * standard_deviation(values) / n**0.5
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), level, n)


def standard_deviation(values: Collection[float]) -> float:
    """The standard deviation over the draws; 0 with one draw."""
    return stdev(values) if len(values) > 1 else 0.0


def accuracy_table(values: Values) -> str:
    """Mean and standard deviation over the draws in per cent; the best of a column is bold."""

    def show(name: str, budget: int) -> str:
        draws = values[name][budget].values()
        shown = f"{100 * _mean(draws):.1f} ± {100 * standard_deviation(draws):.1f}"
        best = max(_means(values, budget).values())
        return f"**{shown}**" if round(_mean(draws), 3) == round(best, 3) else shown

    return _table(values, _budgets(values), show)


def duration_table(values: Values) -> str:
    """The mean seconds of learning, trials of `auto` included."""
    return _table(
        values, _budgets(values), lambda name, budget: _show_seconds(values[name][budget])
    )


def auto_table(records: Records) -> str:
    """What `auto` chose, its distance from the best single strategy, and the cost of the choice."""
    values = accuracies(records)
    total = durations(records)["auto"]
    alone = durations(records, with_choice=False)["auto"]
    named = sorted({cell.strategy for cell in records} - {"auto"})
    columns: dict[int, dict[str, str]] = {}
    regrets = []
    for budget in _budgets(values):
        means = _means(values, budget)
        best = max(named, key=means.__getitem__)
        regrets.append(100 * means[best] - 100 * means["auto"])
        columns[budget] = {
            "best single strategy": f"{best} {100 * means[best]:.1f}",
            "auto": f"{100 * means['auto']:.1f}",
            "regret, points": f"{regrets[-1]:.1f}",
            "chosen": _show_chosen(records, budget),
            "seconds, trials included": _show_seconds(total[budget]),
            "seconds of the chosen plan alone": _show_seconds(alone[budget]),
        }
        if "head" in named:
            auto = values["auto"][budget]
            head = values["head"][budget]
            collapsed = sum(auto[seed] < value - COLLAPSE for seed, value in head.items())
            columns[budget]["draws more than 5 points below head"] = str(collapsed)
    table = _table(columns[budget], columns, lambda name, budget: columns[budget][name])
    return f"{table}\n\nMean regret: {_mean(regrets):.2f} points."


def plot(values: Values, level: float) -> Figure:
    """Accuracy by labels per class, a line for each strategy; beside it the gain on head alone.

    Gains are paired by draw. Where a line of the second part crosses zero, more labels have changed
    which strategy is best.
    """
    parts = 2 if "head" in values else 1
    figure = Figure(figsize=(12 if parts == 2 else 7, 5.5), layout="constrained")
    accuracy, *others = figure.subplots(1, parts, squeeze=False)[0]
    shown = {name: row for name, row in values.items() if name != "majority"}
    for name, row in shown.items():
        _draw_line(accuracy, name, row, level)
    budgets = _budgets(values)
    lowest = min(min(_means(shown, budget).values()) for budget in budgets)
    accuracy.set(ylabel="accuracy on the test split (%)", ylim=(max(0, 100 * lowest - 5), 101))
    accuracy.legend(ncols=2, loc="best")
    for axes in others:
        _draw_gains(axes, shown)
    for axes in (accuracy, *others):
        axes.set(xlabel="labels per class", xscale="log")
        axes.set_xticks(budgets, list(map(str, budgets)))
        axes.minorticks_off()
    return figure


def _draw_gains(axes: Axes, values: Values) -> None:
    axes.axhline(0, color=COLOURS["head"], linewidth=1.5)
    for name in values:
        if name in ("head", "scratch", "raw_inputs"):
            continue
        gains: Row = {}
        for budget, draws in values[name].items():
            head = values["head"][budget]
            gains[budget] = {seed: value - head[seed] for seed, value in draws.items()}
        _draw_line(axes, name, gains)
    axes.set(ylabel="gain on head alone (points, mean of the draws)")


def _draw_line(axes: Axes, name: str, row: Row, level: float | None = None) -> None:
    """The mean over the draws by budget; with a `level` also its interval as error bars."""
    # Without a level only the mean of the estimates is drawn.
    estimates = [mean_estimate(draws.values(), level or 0.5) for draws in row.values()]
    means, lows, highs = 100 * np.array([(each.value, each.low, each.high) for each in estimates]).T
    style: dict[str, Any] = {"label": name, "color": COLOURS.get(name), "linewidth": 1.3}
    if name == "auto":  # a broad band behind the line of what it chose
        style |= {"linewidth": 6, "alpha": 0.3, "zorder": 1}
    errors = None if level is None else [means - lows, highs - means]
    style |= {"marker": "o", "markersize": 4, "capsize": 2, "elinewidth": 0.5}
    axes.errorbar(list(row), means, yerr=errors, **style)


def write_tables(records: Records, folder: Path, level: float) -> str:
    """The tables as Markdown; the main process writes table.md and table.png into `folder`."""
    values = accuracies(records)
    parts = [accuracy_table(values), "Seconds of learning:", duration_table(durations(records))]
    if "auto" in values and len({cell.strategy for cell in records}) > 1:
        parts += ["What `auto` did:", auto_table(records)]
    text = "\n\n".join(parts)
    if PartialState().is_main_process:
        write_atomically(folder / "table.md", text + "\n")
        plot(values, level).savefig(folder / "table.png", dpi=110)
        log.info("%s", text)
    return text


def _show_chosen(records: Records, budget: int) -> str:
    chosen: Counter[str] = Counter()
    for cell, record in records.items():
        if (cell.strategy, cell.budget) == ("auto", budget):
            chosen[record.strategy.used] += 1
    return ", ".join(f"{name} {count}" for name, count in chosen.most_common())


def _show_seconds(draws: Mapping[int, float]) -> str:
    mean = _mean(draws.values())
    return f"{mean:.1f}" if mean < 9.95 else f"{mean:.0f}"


def _table(names: Iterable[str], budgets: Collection[int], show: Callable[[str, int], str]) -> str:
    lines = [_line("labels per class", map(str, budgets)), "|---|" + "---|" * len(budgets)]
    for name in names:
        lines.append(_line(name, (show(name, budget) for budget in budgets)))
    return "\n".join(lines)


def _line(name: str, cells: Iterable[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def _budgets(values: Values) -> list[int]:
    return sorted(next(iter(values.values())))


def _means(values: Values, budget: int) -> dict[str, float]:
    return {name: _mean(row[budget].values()) for name, row in values.items()}


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)
