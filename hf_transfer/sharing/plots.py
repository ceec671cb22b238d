"""Plots of a run: pure functions of its record."""

import io
from collections.abc import Callable
from operator import attrgetter, itemgetter

import numpy as np
from matplotlib.figure import Figure

from hf_transfer.record import ProblemType, RunRecord

MAX_COUNTED = 15  # classes up to which the cells of a confusion matrix hold readable counts
MAX_NAMED = 40  # classes up to which their names fit on the axes


def confusion_matrix(record: RunRecord) -> Figure:
    """Truth against prediction, each row the shares of a class, with counts where readable."""
    labels = record.dataset.labels
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    for truth, predicted, count in record.evaluation.confusion or ():
        counts[truth, predicted] = count
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(12.0, 3.5 + 0.42 * len(labels))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    title = f"test split, {record.evaluation.n} examples"
    axes.set(xlabel="prediction", ylabel="truth", title=title)
    if len(labels) <= MAX_NAMED:
        axes.set_xticks(range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
        axes.set_yticks(range(len(labels)), labels)
    if len(labels) <= MAX_COUNTED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    return figure


def truth_and_answer(record: RunRecord) -> Figure:
    """Predictions of a regression over the truth, a point an example, and the diagonal."""
    truths, predicted = zip(*record.evaluation.points or (), strict=True)
    ends = [min(truths + predicted), max(truths + predicted)]
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(ends, ends, color="#bbb", linewidth=1)
    axes.scatter(truths, predicted, s=12, alpha=0.6, edgecolors="none")
    shown = f"{len(truths):,} of the " if len(truths) < record.evaluation.n else ""
    title = f"test split, {shown}{record.evaluation.n} examples"
    axes.set(xlabel=f"{record.dataset.labels[0]}: truth", ylabel="prediction", title=title)
    return figure


def learning_curve(record: RunRecord) -> Figure:
    """Training and validation loss by step, phase after phase, with the best step of each."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[tuple[float, float]]]
    curves = {"training": [], "validation (dotted: best step)": []}
    start = 0
    for phase in filter(attrgetter("steps"), record.phases):
        axes.axvline(start, color="#bbb", linewidth=1)
        place = ("data", "axes fraction")
        axes.annotate(f" {phase.name}", (start, 1), xycoords=place, va="top", color="#666")
        for logged in phase.history:
            for points, loss in zip(curves.values(), (logged.loss, logged.eval_loss), strict=True):
                if loss is not None:
                    points.append((start + logged.step, loss))
        if phase.best_step is not None:
            best = start + phase.best_step
            axes.axvline(best, color="tab:orange", linestyle=":", linewidth=1.5)
        start += phase.steps
    for label, points in filter(itemgetter(1), curves.items()):
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel="loss", title="learning curve")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


# The plots of a run by problem type; the title of each names its file too.
PLOTS: dict[ProblemType, dict[str, Callable[[RunRecord], Figure]]] = {
    "single_label_classification": {
        "confusion matrix": confusion_matrix,
        "learning curve": learning_curve,
    },
    "multi_label_classification": {"learning curve": learning_curve},
    "regression": {"truth and answer": truth_and_answer, "learning curve": learning_curve},
}


def plots_of(record: RunRecord) -> dict[str, Callable[[RunRecord], Figure]]:
    """The functions that draw the plots of a run, by title; without steps, no learning curve."""
    plots = dict(PLOTS[record.problem_type])
    if not any(map(attrgetter("history"), record.phases)):
        del plots["learning curve"]
    return plots


def as_png(figure: Figure) -> bytes:
    """A figure as PNG, without date or software name: the same record gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
