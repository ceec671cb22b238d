"""The tables and the plot of a comparison: pure functions of its records."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
Values = dict[str, dict[int, dict[int, float]]]  # strategy or baseline -> budget -> seed -> value


def accuracies(records: Records) -> Values:
    """The accuracy of each run, and of the baselines in its record."""
    values: Values = {}
    for cell, record in records.items():
        rows = {cell.strategy: record.metrics["accuracy"].value}
        rows |= {name: metrics["accuracy"].value for name, metrics in record.baselines.items()}
        for row, value in rows.items():
            values.setdefault(row, {}).setdefault(cell.budget, {})[cell.seed] = value
    return values


def durations(records: Records, with_choice: bool = True) -> Values:
    """The seconds that each run spent on learning, without loading and evaluation."""
    parts = ("frozen_s", "train_s", "choose_s") if with_choice else ("frozen_s", "train_s")
    values: Values = {}
    for cell, record in records.items():
        seconds = sum(getattr(record.timings, part) or 0.0 for part in parts)
        values.setdefault(cell.strategy, {}).setdefault(cell.budget, {})[cell.seed] = seconds
    return values


def mean_estimate(values: Sequence[float], level: float) -> Estimate:
    """The mean with Student's t interval over the draws; with one draw the interval is 0 to 1."""
    n = len(values)
    mean = _mean(values)
    if n < 2:
        return Estimate(mean, 0.0, 1.0, level, n)
    quantile = float(student.ppf(0.5 + level / 2, n - 1))
    half = quantile * standard_deviation(values) / math.sqrt(n)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), level, n)


def standard_deviation(values: Sequence[float]) -> float:
    """The standard deviation over the draws; 0 with one draw."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def accuracy_table(values: Values) -> str:
    """Mean and standard deviation over the draws in per cent; the best of a column is bold."""
    best = {budget: round(max(_means(values, budget).values()), 3) for budget in _budgets(values)}

    def show(draws: Sequence[float], budget: int) -> str:
        shown = f"{100 * _mean(draws):.1f} ± {100 * standard_deviation(draws):.1f}"
        return f"**{shown}**" if round(_mean(draws), 3) == best[budget] else shown

    return _table(values, show)


def duration_table(values: Values) -> str:
    """The mean seconds of learning, trials of `auto` included."""
    return _table(values, lambda draws, _: _show_seconds(draws))


def auto_table(records: Records) -> str:
    """What `auto` chose, its distance from the best single strategy, and the cost of the choice."""
    values = accuracies(records)
    named = sorted({cell.strategy for cell in records} - {"auto"})
    columns = []
    regrets = []
    for budget in _budgets(values):
        means = {name: 100 * mean for name, mean in _means(values, budget).items()}
        best = max(named, key=means.__getitem__)
        regrets.append(means[best] - means["auto"])
        column = {
            "best single strategy": f"{best} {means[best]:.1f}",
            "auto": f"{means['auto']:.1f}",
            "regret, points": f"{regrets[-1]:.1f}",
            **_choices(records, budget),
        }
        if "head" in named:
            auto = values["auto"][budget]
            head = values["head"][budget]
            collapsed = sum(auto[seed] < value - COLLAPSE for seed, value in head.items())
            column["draws more than 5 points below head"] = str(collapsed)
        columns.append(column)
    lines = [_header(_budgets(values))]
    for name in columns[0]:
        lines.append(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")
    return "\n".join(lines) + f"\n\nMean regret: {_mean(regrets):.2f} points."


def _choices(records: Records, budget: int) -> dict[str, str]:
    """Name of a row -> what it shows of the runs of `auto` with one budget."""
    runs = {
        cell: record
        for cell, record in records.items()
        if (cell.strategy, cell.budget) == ("auto", budget)
    }
    chosen = Counter(record.strategy.used for record in runs.values())
    total = durations(runs)["auto"][budget]
    alone = durations(runs, with_choice=False)["auto"][budget]
    return {
        "chosen": ", ".join(f"{name} {count}" for name, count in chosen.most_common()),
        "seconds, trials included": _show_seconds(list(total.values())),
        "seconds of the chosen plan alone": _show_seconds(list(alone.values())),
    }


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
        draws = {budget: list(by_seed.values()) for budget, by_seed in row.items()}
        _draw_line(accuracy, name, draws, level)
    lowest = min(min(_means(shown, budget).values()) for budget in _budgets(shown))
    accuracy.set(ylabel="accuracy on the test split (%)", ylim=(max(0, 100 * lowest - 5), 101))
    accuracy.legend(ncols=2, loc="best")
    for axes in others:
        _draw_gains(axes, shown)
    for axes in (accuracy, *others):
        axes.set(xlabel="labels a class", xscale="log")
        axes.set_xticks(_budgets(values), [str(budget) for budget in _budgets(values)])
        axes.minorticks_off()
    return figure


def _draw_gains(axes: Axes, values: Values) -> None:
    """The gain of each strategy on head alone, in points, mean of the draws."""
    axes.axhline(0, color=COLOURS["head"], linewidth=1.5)
    for name in values:
        if name in ("head", "scratch", "raw_inputs"):
            continue
        gains = {}
        for budget, draws in values[name].items():
            head = values["head"][budget]
            gains[budget] = [value - head[seed] for seed, value in draws.items()]
        _draw_line(axes, name, gains)
    axes.set(ylabel="gain on head alone (points, mean of the draws)")


def _draw_line(
    axes: Axes, name: str, by_budget: Mapping[int, list[float]], level: float | None = None
) -> None:
    """The mean over the draws by budget; with a `level` also its interval as error bars."""
    means = [100 * _mean(draws) for draws in by_budget.values()]
    errors = None
    if level is not None:
        estimates = [mean_estimate(draws, level) for draws in by_budget.values()]
        below = [100 * (estimate.value - estimate.low) for estimate in estimates]
        above = [100 * (estimate.high - estimate.value) for estimate in estimates]
        errors = [below, above]
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


def _show_seconds(values: Sequence[float]) -> str:
    mean = _mean(values)
    return f"{mean:.1f}" if mean < 9.95 else f"{mean:.0f}"


def _table(values: Values, show: Callable[[Sequence[float], int], str]) -> str:
    """A table with a row for each strategy or baseline, and a column for each budget."""
    lines = [_header(_budgets(values))]
    for name, row in values.items():
        cells = (show(list(row[budget].values()), budget) for budget in _budgets(values))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _header(budgets: Sequence[int]) -> str:
    titles = " | ".join(map(str, budgets))
    return f"| labels a class | {titles} |\n|---|" + "---|" * len(budgets)


def _budgets(values: Values) -> list[int]:
    return sorted(next(iter(values.values())))


def _means(values: Values, budget: int) -> dict[str, float]:
    """The mean over the draws of each strategy and baseline."""
    return {name: _mean(list(row[budget].values())) for name, row in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
