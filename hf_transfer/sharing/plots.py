"""Pictures of a run: pure functions of its record."""

import io
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from hf_transfer.record import RunRecord

MOST_NUMBERS = 15  # classes up to which the cells of a confusion matrix hold readable counts
MOST_NAMES = 40  # classes up to which their names fit on the axes


def confusion_matrix(record: RunRecord) -> Figure:
    """Truth against answer, each row a class's shares, with counts where they can be read."""
    labels = record.dataset.labels
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    for truth, answer, count in record.evaluation.confusion or ():
        counts[truth, answer] = count
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(12.0, 3.5 + 0.42 * len(labels))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="truth", title=f"test split, {record.evaluation.n} examples")
    if len(labels) <= MOST_NAMES:
        axes.set_xticks(range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
        axes.set_yticks(range(len(labels)), labels)
    if len(labels) <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                color=shade,
                fontsize=9,
            )
    return figure


def truth_and_answer(record: RunRecord) -> Figure:
    """The answers of a regression over the truth, a point an example; right answers lie on the line."""
    truths, answers = zip(*record.evaluation.points or (), strict=True)
    ends = [min(truths + answers), max(truths + answers)]
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(ends, ends, color="#bbb", linewidth=1)
    axes.scatter(truths, answers, s=12, alpha=0.6, edgecolors="none")
    shown = f"{len(truths):,} of the " if len(truths) < record.evaluation.n else ""
    label = record.dataset.labels[0]
    axes.set(
        xlabel=f"{label}: truth",
        ylabel="answer",
        title=f"test split, {shown}{record.evaluation.n} examples",
    )
    return figure


def learning_curve(record: RunRecord) -> Figure:
    """Loss on the training and the validation split by step, phase after phase, with the steps that were kept."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    training: list[tuple[float, float]] = []
    validation: list[tuple[float, float]] = []
    start = 0
    for phase in [phase for phase in record.phases if phase.steps]:
        axes.axvline(start, color="#bbb", linewidth=1)
        axes.annotate(
            f" {phase.name}",
            (start, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            color="#666",
        )
        for entry in phase.history:
            if entry.loss is not None:
                training.append((start + entry.step, entry.loss))
            if entry.eval_loss is not None:
                validation.append((start + entry.step, entry.eval_loss))
        if phase.best_step is not None:
            axes.axvline(start + phase.best_step, color="tab:orange", linestyle=":", linewidth=1.5)
        start += phase.steps
    curves = {"training": training, "validation (dotted: the step kept)": validation}
    for name, points in curves.items():
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                marker="o" if len(points) < 30 else None,
                markersize=3,
            )
    axes.set(xlabel="step", ylabel="loss", title="learning curve")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


# The pictures of a run by problem type; the title of each names its file too.
PICTURES: dict[str, dict[str, Callable[[RunRecord], Figure]]] = {
    "single_label_classification": {
        "confusion matrix": confusion_matrix,
        "learning curve": learning_curve,
    },
    "multi_label_classification": {"learning curve": learning_curve},
    "regression": {"truth and answer": truth_and_answer, "learning curve": learning_curve},
}


def pictures_of(record: RunRecord) -> dict[str, Callable[[RunRecord], Figure]]:
    """What to draw of a run, by title; a head that was solved has no learning curve."""
    stepped = any(phase.history for phase in record.phases)
    found = PICTURES[record.problem_type]
    return {title: draw for title, draw in found.items() if stepped or draw is not learning_curve}


def as_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG, without date or software name: the same record gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
