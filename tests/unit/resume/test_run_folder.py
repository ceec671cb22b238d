"""Who may run in an output folder: one process at a time, and the same run only."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import Finished, UserError
from hf_transfer.resume.run_folder import (
    load_choice,
    open_run,
    release,
    save_choice,
    write_run_file,
)
from hf_transfer.resume.run_spec import require_same
from hf_transfer.resume.states import States

SPEC = {"the strategy": "head", "--seed": 42, "the plan": {"batch_size": 16, "learning_rate": 0.1}}
CLAIM = """
import sys
if sys.argv[2] == "without fcntl":
    sys.modules["fcntl"] = None
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import UserError
from hf_transfer.resume.run_folder import claim, release
training = TrainingConfig(output_dir=sys.argv[1], use_cpu=True)
try:
    claim(training)
    print("locked", flush=True)
    sys.stdin.read()
    release(training)
except UserError as error:
    print(error, flush=True)
"""


@pytest.fixture
def training(tmp_path: Path) -> Iterator[TrainingConfig]:
    """Arguments with an output folder, which is unlocked in the end."""
    training = TrainingConfig(output_dir=str(tmp_path / "run"), use_cpu=True)
    yield training
    release(training)


def _start(folder: Path, system: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder), system],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize("system", ["with fcntl", "without fcntl"])
def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path, system: str) -> None:
    folder = tmp_path / "run"
    first = _start(folder, system)
    assert _first_line(first) == "locked", first.communicate()
    second = _start(folder, system)
    assert _first_line(second) == f"another run is at work in '{folder}'", second.communicate()
    first.kill()
    first.communicate()
    third = _start(folder, system)
    assert _first_line(third) == "locked", third.communicate()
    assert folder.exists()
    out, err = third.communicate(input="")
    assert (third.returncode, out) == (0, ""), err
    assert not folder.exists()  # it has saved nothing
    second.communicate(input="")


def test_a_run_that_saved_its_spec_is_opened_again_by_the_same_spec_only(
    training: TrainingConfig,
) -> None:
    assert open_run(training, SPEC)
    write_run_file(Path(str(training.output_dir)))
    release(training)
    assert open_run(training, SPEC)
    release(training)
    with pytest.raises(UserError, match="holds another run: the strategy was head, now full"):
        open_run(training, {**SPEC, "the strategy": "full"})


def test_a_finished_run_says_so(training: TrainingConfig) -> None:
    assert open_run(training, SPEC)
    write_run_file(Path(str(training.output_dir)), finished=True)
    release(training)
    with pytest.raises(Finished, match="is finished; --overwrite_output_dir starts it over"):
        open_run(training, SPEC)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_the_first_versions_is_another_run(
    finished: bool, training: TrainingConfig
) -> None:
    folder = Path(str(training.output_dir)) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"asked": SPEC, "finished": finished}))
    with pytest.raises(UserError, match="holds another run: it was begun with another version"):
        open_run(training, SPEC)
    (folder / "run.json").unlink()


def test_a_state_of_the_first_versions_is_passed_over(
    training: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    state = Path(str(training.output_dir)) / "checkpoints" / "state-000001-full-step-2"
    state.mkdir(parents=True)
    manifest = {"format": 1, "files": {}, "facts": {"asked": SPEC}}
    (state / "manifest.json").write_text(json.dumps({"manifest": manifest, "sha256": "0" * 64}))
    run = open_run(training, SPEC)
    assert run
    assert run.resumed is None
    assert f"passed over the state {state}: its manifest cannot be read" in caplog.text
    States(state.parent).clear()


def test_a_run_file_that_cannot_be_read_is_ignored(
    training: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(str(training.output_dir)) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    assert open_run(training, SPEC)
    assert "run.json cannot be read, and is ignored" in caplog.text


@dataclass
class _Choice:
    strategy: str


def test_a_choice_is_loaded_by_the_same_spec_only(training: TrainingConfig) -> None:
    save_choice(training, SPEC, _Choice("head"))
    assert load_choice(training, SPEC) == {"strategy": "head"}
    assert load_choice(training, {**SPEC, "--seed": 7}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.update({"--seed": 7}), "--seed was 42, now 7"),
        (lambda spec: spec["the plan"].update(batch_size=8), "the plan: batch_size was 16, now 8"),
        (lambda spec: spec.update({"--seed": "7" * 99}), f"--seed was 42, now {'7' * 57}..."),
        (lambda spec: spec.pop("--seed"), "it was begun with another version of hf_transfer"),
        (
            lambda spec: spec.update({"--new": 1}),
            "it was begun with another version of hf_transfer",
        ),
    ],
)
def test_another_spec_is_refused_by_its_differences(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    other = json.loads(json.dumps(SPEC))
    require_same(SPEC, other, tmp_path, "run", "a hint")
    change(other)
    with pytest.raises(UserError) as raised:
        require_same(SPEC, other, tmp_path, "study", "a hint")
    assert raised.value.message.startswith(f"'{tmp_path}' holds another study: {message}")
    assert raised.value.hint == "a hint"
