import importlib.metadata
import logging
import subprocess
import sys

import pytest
from tqdm.auto import tqdm

from hf_transfer.cli import command
from hf_transfer.errors import UserError


def _fail() -> None:
    raise UserError("the value 3 is odd", "give 4")


def test_what_the_user_can_mend_ends_in_two_lines_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        command.run_command(_fail)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: the value 3 is odd\nhint: give 4\n"


def test_an_error_begins_below_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_within_a_bar() -> None:
        bar = tqdm(total=3, desc="rows")
        bar.update(1)
        _fail()

    with pytest.raises(SystemExit):
        command.run_command(fail_within_a_bar)
    lines = capsys.readouterr().err.splitlines()
    assert "rows" in lines[-3]
    assert lines[-2:] == ["error: the value 3 is odd", "hint: give 4"]


def test_a_log_line_stands_above_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    def log_within_a_bar() -> None:
        with tqdm(total=3, desc="rows"):
            logging.getLogger("hf_transfer").warning("three rows are empty")

    command.run_command(log_within_a_bar)
    shown = [line.rsplit("\r", 1)[-1] for line in capsys.readouterr().err.splitlines()]
    assert "three rows are empty" in shown


def test_a_bare_debug_flag_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--seed", "3", "--debug"])
    with pytest.raises(UserError):
        command.run_command(_fail)
    assert sys.argv == ["recipe.py", "--seed", "3"]


def test_trainers_own_debug_flag_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--debug", "underflow_overflow"])
    command.run_command(lambda: None)
    assert sys.argv == ["recipe.py", "--debug", "underflow_overflow"]


def test_ctrl_c_ends_in_one_line_and_exit_code_75(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        command.run_command(interrupted)
    assert end.value.code == 75
    assert "stopped" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run_command(lambda: [1 / 0].clear())


def test_the_namesake_on_pypi_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.9")
    with pytest.raises(SystemExit) as end:
        command.run_command(lambda: None)
    assert end.value.code == 2
    assert "hf_transfer 0.1.9" in capsys.readouterr().err


def test_help_and_what_only_reads_records_load_no_heavy_library() -> None:
    source = (
        "import sys, hf_transfer, hf_transfer.cli.main, hf_transfer.record, hf_transfer.tasks\n"
        "import hf_transfer.sharing.card, hf_transfer.sharing.plots, hf_transfer.sharing.render\n"
        "import hf_transfer.evaluation.metrics\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate'}\n"
        "sys.argv = ['hf-transfer', '--help']\n"
        "try:\n    hf_transfer.cli.main.main()\nexcept SystemExit:\n    pass\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert "predict" in done.stdout
    assert done.stdout.strip().endswith("heavy: []")
