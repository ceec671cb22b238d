from dataclasses import replace
from pathlib import Path

import pytest

from hf_transfer.record import Estimate, RunRecord, Timings
from hf_transfer.studies.compare_tables import (
    Cell,
    accuracies,
    accuracy_table,
    auto_table,
    duration_table,
    durations,
    mean_estimate,
    plot,
    standard_deviation,
    write_tables,
)
from tests.unit.sharing.example import example_record


def _record(accuracy: float, used: str = "head", choose_s: float = 0.0) -> RunRecord:
    record = example_record()
    return replace(
        record,
        evaluation=replace(
            record.evaluation, metrics={"accuracy": Estimate(accuracy, 0.0, 1.0, 0.95, 100)}
        ),
        strategy=replace(record.strategy, used=used),
        timings=Timings(50.0, 1.0, 2.0, 70.0, 123.0 + choose_s, choose_s),
    )


# Accuracies of two draws, at 1 and at 10 labels per class.
VALUES = {
    "head": ([0.5, 0.6], [0.7, 0.7]),
    "full": ([0.4, 0.5], [0.9, 0.8]),
    "auto": ([0.5, 0.4], [0.9, 0.8]),
}


@pytest.fixture
def records() -> dict[Cell, RunRecord]:
    """Of two strategies, and of auto, which takes the head once."""
    found = {}
    for strategy, columns in VALUES.items():
        for budget, values in zip((1, 10), columns, strict=True):
            for seed, value in enumerate(values):
                chosen = (
                    ("head" if (budget, seed) == (1, 0) else "full")
                    if strategy == "auto"
                    else strategy
                )
                seconds = 4.0 if strategy == "auto" else 0.0
                found[Cell(strategy, budget, seed)] = _record(value, chosen, seconds)
    return found


def _rows(table: str) -> dict[str, list[str]]:
    """The first cell of a line of Markdown -> its other cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in lines if not line[0].startswith("---")}


def test_the_interval_over_draws_is_students() -> None:
    estimate = mean_estimate([0.8, 0.9, 1.0], 0.95)
    assert estimate.value == pytest.approx(0.9)
    assert estimate.low == pytest.approx(0.9 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert estimate.high == 1.0


def test_one_draw_has_no_standard_deviation_and_the_widest_interval() -> None:
    assert mean_estimate([0.8], 0.95) == Estimate(0.8, 0.0, 1.0, 0.95, 1)
    assert standard_deviation([0.8]) == 0.0


def test_the_table_has_a_row_for_each_strategy_and_baseline_and_marks_the_best_of_a_column(
    records: dict[Cell, RunRecord],
) -> None:
    rows = _rows(accuracy_table(accuracies(records)))
    assert rows["labels per class"] == ["1", "10"]
    assert set(rows) == {"labels per class", "head", "full", "auto", "majority"}
    assert rows["head"] == ["**55.0 ± 7.1**", "70.0 ± 0.0"]
    assert rows["full"] == ["45.0 ± 7.1", "**85.0 ± 7.1**"]
    assert rows["auto"] == ["45.0 ± 7.1", "**85.0 ± 7.1**"]
    assert not any("**" in cell for cell in rows["majority"])


def test_the_seconds_of_learning_are_those_of_frozen_layers_training_and_choice(
    records: dict[Cell, RunRecord],
) -> None:
    rows = _rows(duration_table(durations(records)))
    assert (rows["head"], rows["auto"]) == (["3.0", "3.0"], ["7.0", "7.0"])
    assert durations(records, with_choice=False)["auto"][1] == {0: 3.0, 1: 3.0}


def test_a_record_without_the_seconds_of_a_choice_has_none() -> None:
    record = replace(_record(0.5), timings=Timings(0.0, 1.0, 2.0, 0.0, 3.0))
    assert durations({Cell("head", 1, 0): record}) == {"head": {1: {0: 3.0}}}


def test_the_table_of_auto_has_its_choices_regret_and_cost(
    records: dict[Cell, RunRecord],
) -> None:
    rows = _rows(auto_table(records))
    assert rows["best single strategy"] == ["head 55.0", "full 85.0"]
    assert rows["auto"] == ["45.0", "85.0"]
    assert rows["regret, points"] == ["10.0", "0.0"]
    assert rows["chosen"] == ["head 1, full 1", "full 2"]
    assert rows["seconds, trials included"] == ["7.0", "7.0"]
    assert rows["seconds of the chosen plan alone"] == ["3.0", "3.0"]
    assert rows["draws more than 5 points below head"] == ["1", "0"]  # of one draw: 40 beside 60


def test_the_plot_has_a_line_for_each_strategy_and_none_for_the_majority(
    records: dict[Cell, RunRecord],
) -> None:
    axes, _ = plot(accuracies(records), 0.95).axes
    assert axes.get_xlabel() == "labels per class"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["head", "full", "auto"]


def test_its_second_part_has_the_gain_of_each_strategy_on_the_head_paired_by_draw(
    records: dict[Cell, RunRecord],
) -> None:
    _, gains = plot(accuracies(records), 0.95).axes
    zero, full, auto = gains.get_lines()
    assert set(zero.get_ydata()) == {0}
    assert list(full.get_ydata()) == pytest.approx([-10.0, 15.0])
    assert list(auto.get_ydata()) == pytest.approx([-10.0, 15.0])


def test_tables_and_plot_are_written_and_no_partial_file_is_left(
    records: dict[Cell, RunRecord], tmp_path: Path
) -> None:
    text = write_tables(records, tmp_path, 0.95)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text + "\n"
    assert "What `auto` did:" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.md", "table.png"]


def test_without_auto_there_is_no_table_of_it(
    records: dict[Cell, RunRecord], tmp_path: Path
) -> None:
    named = {cell: record for cell, record in records.items() if cell.strategy != "auto"}
    assert "auto" not in write_tables(named, tmp_path, 0.95)
