"""Runs that are stopped in the middle, as users and schedulers stop them, and the same command again."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_transfer.record import read_record
from hf_transfer.resume.states import State, States
from tests.conftest import ROOT
from tests.forked import ForkServer, Started

STOPPED = 75
SAVED = ("--save_strategy", "steps", "--save_steps", "12")
COMMON = ("--use_cpu", "--disable_tqdm", "true", "--learning_rate", "1e-3")


@dataclass(frozen=True)
class Workload:
    """A recipe with all its flags but the output folder, and the folder that it ends with when nothing stops it."""

    recipe: str
    flags: tuple[str, ...]
    unbroken: Path

    @property
    def weights(self) -> bytes:
        """What an unbroken run ends with."""
        return (self.unbroken / "model.safetensors").read_bytes()

    def start(self, forked: ForkServer, folder: Path, *flags: str) -> Started:
        """A process of it in a folder."""
        return forked.start(self.recipe, *self.flags, "--output_dir", folder, *flags)

    def run(self, forked: ForkServer, folder: Path, *flags: str) -> Started:
        """The same, once it has ended."""
        return forked.run(self.recipe, *self.flags, "--output_dir", folder, *flags)


@pytest.fixture(scope="module")
def texts(
    forked: ForkServer, tiny_bert: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workload:
    """Texts and a BERT, which has dropout."""
    folder = tmp_path_factory.mktemp("texts")
    base, rows = (
        shutil.copytree(tiny_bert, folder / "base"),
        shutil.copy(text_file, folder / "rows.csv"),
    )
    data = ("--dataset_name", str(rows), "--text_column", "sentence", "--label_column", "animal")
    flags = (
        "--model_name_or_path",
        str(base),
        *data,
        "--strategy",
        "full",
        "--max_steps",
        "80",
        *SAVED,
        *COMMON,
    )
    return _unbroken(forked, "text_classification", flags, folder / "unbroken")


@pytest.fixture(scope="module")
def pictures(
    forked: ForkServer,
    tiny_resnet: Path,
    picture_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Workload:
    """Pictures and a ResNet, which has running statistics."""
    given = ("--model_name_or_path", str(tiny_resnet), "--dataset_name", str(picture_folder))
    flags = (*given, "--strategy", "full", "--max_steps", "80", *SAVED, *COMMON)
    return _unbroken(
        forked, "image_classification", flags, tmp_path_factory.mktemp("pictures-unbroken")
    )


def _unbroken(forked: ForkServer, recipe: str, flags: tuple[str, ...], folder: Path) -> Workload:
    workload = Workload(recipe, flags, folder)
    ended = workload.run(forked, folder)
    assert ended.code == 0, ended.said
    return workload


@pytest.fixture(scope="module")
def stopped(forked: ForkServer, texts: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run of `texts` that was stopped after its second state."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    process = texts.start(forked, folder)
    _wait_for_states(process, folder, 2)
    process.send(signal.SIGTERM)
    assert process.wait() == STOPPED, process.said
    return folder


@pytest.fixture
def again(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run's folder."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def _states(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("state-*"))


def _wait_for_states(process: Started, folder: Path, number: int) -> None:
    """Return as soon as so many states have been written in all."""
    process.wait_until(
        lambda: _states(folder)[-1:] and int(_states(folder)[-1].name.split("-")[1]) >= number
    )
    assert process.code is None, process.said


def _newest(folder: Path) -> State:
    state = States(folder / "checkpoints").newest()
    assert state is not None
    return state


def _contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file below a folder, but for the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    assert len(files) >= 4
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


def _require_refusal(ended: Started, *messages: str) -> None:
    assert ended.code == 2, ended.said
    said = [
        line
        for line in ended.said.splitlines()
        if line.startswith(("error: ", "hint: ", "Traceback"))
    ]
    assert [line.split(":")[0] for line in said] == ["error", "hint"], ended.said
    for message in messages:
        assert message in said[0]


@pytest.mark.parametrize(
    ("number", "workload"),
    [(signal.SIGTERM, "texts"), (signal.SIGINT, "pictures")],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_stops_a_run_at_a_step_and_the_same_command_goes_on_to_the_same_bytes(
    number: signal.Signals,
    workload: str,
    forked: ForkServer,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    asked: Workload = request.getfixturevalue(workload)
    process = asked.start(forked, tmp_path / "run", "--overwrite_output_dir")
    _wait_for_states(process, tmp_path / "run", 1)
    process.send(number)
    assert process.wait() == STOPPED, process.said
    step = _newest(tmp_path / "run").facts["step"]
    assert 12 <= step < 80
    assert (
        f"\nstopped after step {step} of 80 (phase full); to resume, run the same command again:\n"
        in process.said
    )
    assert "--overwrite_output_dir" not in process.said  # it would start over
    assert not (tmp_path / "run" / "model.safetensors").exists()
    ended = asked.run(forked, tmp_path / "run")
    assert ended.code == 0, ended.said
    assert ended.said.count("resuming from") == 1
    assert read_record(tmp_path / "run" / "record.json").phases[0].resumed_at == [step]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == asked.weights
    assert _states(tmp_path / "run") == []


def test_the_command_that_a_stopped_run_prints_is_the_one_that_was_given(
    forked: ForkServer, texts: Workload, tmp_path: Path
) -> None:
    folder = tmp_path / "it's a run"
    words = [str(Path("recipes") / f"{texts.recipe}.py"), *texts.flags, "--output_dir", str(folder)]
    # One thread, as the fork server has: sums are rounded otherwise with two.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=env
    )
    while process.poll() is None and not _states(folder):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == STOPPED, said
    python, *printed = shlex.split(said.split("run the same command again:\n")[1])
    assert (python, printed) == (Path(sys.executable).name, words)
    assert texts.run(forked, folder).code == 0
    assert (folder / "model.safetensors").read_bytes() == texts.weights


def test_a_run_may_be_stopped_again_and_again(
    forked: ForkServer, texts: Workload, again: Path
) -> None:
    steps = [_newest(again).facts["step"]]
    process = texts.start(forked, again)
    _wait_for_states(process, again, int(_states(again)[-1].name.split("-")[1]) + 1)
    process.send(signal.SIGTERM)
    assert process.wait() == STOPPED, process.said
    steps.append(_newest(again).facts["step"])
    assert steps[0] < steps[1]
    assert texts.run(forked, again).code == 0
    assert read_record(again / "record.json").phases[0].resumed_at == steps
    assert (again / "model.safetensors").read_bytes() == texts.weights


def test_a_second_ctrl_c_ends_at_once_and_the_last_state_is_whole(
    forked: ForkServer, texts: Workload, tmp_path: Path
) -> None:
    slow = (
        "--per_device_train_batch_size",
        "1",
        "--gradient_accumulation_steps",
        "192",
        "--save_steps",
        "1",
    )
    process = texts.start(forked, tmp_path / "run", *slow)
    _wait_for_states(process, tmp_path / "run", 1)
    process.send(signal.SIGINT)
    process.wait_until(lambda: "stopping after this step" in process.said)
    process.send(signal.SIGINT)
    assert process.wait() == STOPPED
    assert "stopped; to resume, run the same command again" in process.said
    assert "stopped after step" not in process.said
    assert "Traceback" not in process.said
    assert _newest(tmp_path / "run").facts["step"] == 1
    assert len(_states(tmp_path / "run")) == 1


def test_the_command_of_a_finished_run_says_so_and_changes_nothing(
    forked: ForkServer, pictures: Workload
) -> None:
    before = _contents(pictures.unbroken)
    ended = pictures.run(forked, pictures.unbroken)
    assert ended.code == 0
    assert (
        f"the run in '{pictures.unbroken}' is finished; --overwrite_output_dir starts it over"
        in ended.said
    )
    assert _contents(pictures.unbroken) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--learning_rate", "2e-3"), "learning_rate was 0.001, now 0.002"),
        (("--strategy", "head_then_full"), "the strategy was full, now head_then_full"),
        (("--seed", "7"), "--seed was 42, now 7"),
        (("--max_steps", "79"), "--max_steps was 80, now 79"),
        (("--per_device_train_batch_size", "4"), "batch_size was 16, now 4"),
        (("--max_train_samples", "96"), "the number of training examples was 192, now 96"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_another_run_is_refused_in_the_folder_of_a_stopped_one(
    flags: tuple[str, ...], message: str, forked: ForkServer, texts: Workload, stopped: Path
) -> None:
    before = _contents(stopped)
    _require_refusal(texts.run(forked, stopped, *flags), "holds another run", message)
    assert _contents(stopped) == before


def test_another_base_model_is_refused(
    forked: ForkServer, texts: Workload, tiny_bert: Path, stopped: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_bert, tmp_path / "other")
    ended = texts.run(forked, stopped, "--model_name_or_path", str(other))
    _require_refusal(ended, "the base model was local:base", "now local:other")


def test_a_base_model_whose_weights_have_changed_is_refused(
    forked: ForkServer, texts: Workload, stopped: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(texts.flags[1], tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][3, 3] += 0.5
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    _require_refusal(
        texts.run(forked, stopped, "--model_name_or_path", str(base)),
        "the weights at the start (digest)",
    )


def test_rows_that_have_changed_are_refused(
    forked: ForkServer, texts: Workload, stopped: Path, tmp_path: Path
) -> None:
    rows = Path(texts.flags[3]).read_text()
    changed = tmp_path / "rows.csv"
    changed.write_text(rows.replace("runs", "sleeps", 1))
    assert changed.read_text() != rows
    _require_refusal(
        texts.run(forked, stopped, "--dataset_name", str(changed)),
        "the data (digest) was",
        ", now ",
    )


def test_overwrite_output_dir_starts_over(forked: ForkServer, texts: Workload, again: Path) -> None:
    ended = texts.run(forked, again, "--overwrite_output_dir")
    assert ended.code == 0, ended.said
    assert "resuming from" not in ended.said
    assert read_record(again / "record.json").phases[0].resumed_at == []
    assert (again / "model.safetensors").read_bytes() == texts.weights


def test_resume_never_refuses_and_changes_nothing(
    forked: ForkServer, texts: Workload, stopped: Path
) -> None:
    before = _contents(stopped)
    _require_refusal(
        texts.run(forked, stopped, "--resume", "never"), "holds a run that was stopped"
    )
    assert _contents(stopped) == before


def test_a_second_run_in_a_folder_is_refused_and_the_first_is_unharmed(
    forked: ForkServer, texts: Workload, tmp_path: Path
) -> None:
    first = texts.start(forked, tmp_path / "run")
    _wait_for_states(first, tmp_path / "run", 1)
    first.send(signal.SIGSTOP)  # else it may end before the second begins
    second, third = (
        texts.run(forked, tmp_path / "run", *flags) for flags in ((), ("--overwrite_output_dir",))
    )
    first.send(signal.SIGCONT)
    for refused in (second, third):
        _require_refusal(refused, f"another run is at work in '{tmp_path / 'run'}'")
    assert first.wait() == 0, first.said
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == texts.weights


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_newest_state_that_is_damaged_is_said_and_the_run_ends_with_the_same_bytes(
    forked: ForkServer, texts: Workload, again: Path
) -> None:
    older, newer = _states(again)
    _flip_a_bit(newer / "weights.pt")
    ended = texts.run(forked, again)
    assert ended.code == 0, ended.said
    assert f"passed over the state {newer}: weights.pt is not what was written" in ended.said
    assert f"resuming from {older}" in ended.said
    assert (again / "model.safetensors").read_bytes() == texts.weights


def test_where_all_states_are_damaged_the_run_begins_anew_and_says_so(
    forked: ForkServer, texts: Workload, again: Path
) -> None:
    for state in _states(again):
        _flip_a_bit(state / "training.pt")
    ended = texts.run(forked, again)
    assert ended.code == 0, ended.said
    assert ended.said.count("passed over the state") == 2
    assert (again / "model.safetensors").read_bytes() == texts.weights


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--strategy", "ful"), "unknown --strategy 'ful'"),
        (("--text_column", "words"), "words"),
        (("--early_stopping_patience", "2"), "--early_stopping_patience needs a validation split"),
        (("--class_weights", "balancd"), "balancd"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_refused_leaves_no_folder_behind(
    flags: tuple[str, ...], message: str, forked: ForkServer, texts: Workload, tmp_path: Path
) -> None:
    _require_refusal(texts.run(forked, tmp_path / "run", *flags), message)
    assert not (tmp_path / "run").exists()


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    forked: ForkServer, texts: Workload, tmp_path: Path
) -> None:
    def start(folder: Path) -> list[Started]:
        return forked.start_several(2, texts.recipe, *texts.flags, "--output_dir", folder)

    first, second = start(tmp_path / "run")
    _wait_for_states(first, tmp_path / "run", 1)
    second.send(signal.SIGTERM)
    kept = len(_states(tmp_path / "run"))
    first.wait_until(lambda: "stopped after step" in first.said)
    while not (
        first.has_ended and second.has_ended
    ):  # a launcher's signals come late, and more than once
        for process in (first, second):
            if not process.has_ended:
                process.send(signal.SIGTERM)
        time.sleep(0.002)
    assert (first.code, second.code) == (STOPPED, STOPPED), first.said + second.said
    step = _newest(tmp_path / "run").facts["step"]
    assert f"stopped after step {step} of 80" in first.said
    assert len(_states(tmp_path / "run")) <= kept + 1
    assert [process.wait() for process in start(tmp_path / "run")] == [0, 0]
    assert [process.wait() for process in start(tmp_path / "unbroken")] == [0, 0]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "unbroken")]
    assert read_record(tmp_path / "run" / "record.json").phases[0].resumed_at == [step]
    assert weights[0] == weights[1]


def test_a_resumed_run_goes_on_in_the_report_of_the_one_that_was_stopped(
    forked: ForkServer, texts: Workload, tmp_path: Path
) -> None:
    flags = ("--report_to", "tensorboard", "--logging_strategy", "steps", "--logging_steps", "1")
    process = texts.start(forked, tmp_path / "run", *flags)
    _wait_for_states(process, tmp_path / "run", 2)
    process.send(signal.SIGTERM)
    assert process.wait() == STOPPED, process.said
    reports = tmp_path / "run" / "checkpoints" / "reports"
    name = (reports / "tracker_id.txt").read_text()
    ended = texts.run(forked, tmp_path / "run", *flags)
    assert ended.code == 0, ended.said
    assert (reports / "tracker_id.txt").read_text() == name
    events = EventAccumulator(str(reports))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 81))
