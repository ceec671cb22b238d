import pytest

from hf_transfer.record import Estimate
from hf_transfer.studies.compare import Cell, as_markdown, as_picture, mean_over_draws, summarize
from tests.unit.sharing.example import example_record


def test_the_interval_over_draws_is_students() -> None:
    estimate = mean_over_draws([0.8, 0.9, 1.0], 0.95)
    assert estimate.value == pytest.approx(0.9)
    assert estimate.low == pytest.approx(0.9 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert estimate.high == 1.0


def test_one_draw_says_nothing_about_the_spread() -> None:
    assert mean_over_draws([0.8], 0.95) == Estimate(0.8, 0.0, 1.0, 0.95, 1)


def test_the_table_has_a_row_a_strategy_and_baseline_and_marks_the_best() -> None:
    records = {Cell(s, k, seed): example_record() for s in ("head", "full") for k in (1, 10) for seed in (0, 1)}
    table = summarize(records, 0.95)
    assert set(table) == {"head", "full", "majority"}
    lines = as_markdown(table).splitlines()
    assert lines[0] == "| labels a class | 1 | 10 |"
    assert lines[2] == "| head | **91.2 ± 0.0** | **91.2 ± 0.0** |"
    assert "**" not in next(line for line in lines if line.startswith("| majority"))
    assert as_picture(table).axes[0].get_xlabel() == "labels a class"
