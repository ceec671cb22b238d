"""Runs that are interrupted at rare places, and the same runs again, in one process."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import Stopped
from hf_transfer.job import make_job
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.tasks import find_task
from hf_transfer.training import engine, step_phase
from hf_transfer.training.engine import Trained, run_plan
from hf_transfer.training.trainer import PhaseTrainer
from tests import checkpoints

TASK = find_task("image-classification")
COMMON = (
    "--use_cpu",
    "--disable_tqdm",
    "true",
    "--learning_rate",
    "1e-3",
    "--augmentation",
    "light",
)

Run = Callable[..., Trained]


@pytest.fixture(scope="module")
def digits() -> Data:
    """200 digits to learn from, more than 100 to choose by."""
    return load_data(DataConfig("builtin:digits", max_train_samples=200), TASK, seed=0)


@pytest.fixture
def run(tiny_resnet: Path, digits: Data) -> Run:
    """A function that runs a plan on digits, its training states in a folder."""

    def run_in(folder: Path, *flags: str, data: Data = digits) -> Trained:
        given = ("--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", str(folder))
        config = read_config(argv=[*given, *COMMON, *flags])
        checkpoint = checkpoints.load(str(tiny_resnet), TASK, data.labels)
        plan = make_plan(config.transfer, make_job(checkpoint, data, config.training))
        return run_plan(plan, checkpoint, data, config.training, config.cache)

    return run_in


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _require_equal(one: Trained, other: Trained) -> None:
    tensors, others = one.model.state_dict(), other.model.state_dict()
    assert len(tensors) > 20
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def test_weights_between_steps_are_judged_alike_after_an_interruption(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        "--strategy",
        "full",
        "--num_train_epochs",
        "2",
        "--average_last",
        "0.6",
        "--save_strategy",
        "epoch",
    )
    unbroken = run(tmp_path / "unbroken", *flags)
    with monkeypatch.context() as patched:
        patched.setattr(step_phase, "select_by_validation", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", *flags)
    again = run(tmp_path / "broken", *flags)
    assert again.phases[0].candidates == unbroken.phases[0].candidates
    assert len(again.phases[0].candidates) == 2
    _require_equal(again, unbroken)


def test_a_signal_after_the_last_step_of_a_phase_stops_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        "--strategy",
        "gradual",
        "--max_steps",
        "12",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
    )
    unbroken = run(tmp_path / "unbroken", *flags)
    train = PhaseTrainer.train

    def train_and_be_signaled(self: PhaseTrainer, *args: Any, **options: Any) -> Any:
        trained = train(self, *args, **options)
        self.stop.received = True
        return trained

    with monkeypatch.context() as patched:
        patched.setattr(PhaseTrainer, "train", train_and_be_signaled)
        with pytest.raises(Stopped, match="stopped after step"):
            run(tmp_path / "broken", *flags)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    _require_equal(run(tmp_path / "broken", *flags), unbroken)


def test_a_head_that_could_not_be_solved_keeps_its_share_of_the_steps(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_probe_phase", lambda *_: None)
    flags = (
        "--strategy",
        "head_then_full",
        "--max_steps",
        "12",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
    )
    unbroken = run(tmp_path / "unbroken", *flags)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "unscale_head", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", *flags)
    again = run(tmp_path / "broken", *flags)
    assert [phase.steps for phase in again.phases] == [phase.steps for phase in unbroken.phases]
    _require_equal(again, unbroken)


def test_rows_that_are_drawn_by_class_are_the_same_after_an_interruption(
    run: Run, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--strategy", "full", "--class_weights", "sampler", "--max_steps", "12")
    # Few of the digits 5 to 9.
    rows = [row for row, label in enumerate(digits.train["label"][:]) if label < 5 or row % 5 == 0]
    data = replace(digits, splits={**digits.splits, "train": digits.train.select(rows)})
    unbroken = run(tmp_path / "unbroken", *flags, data=data)
    step = PhaseTrainer.training_step

    def step_and_be_signaled(self: PhaseTrainer, *args: Any, **options: Any) -> Any:
        self.stop.received = self.state.global_step == 6
        return step(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(PhaseTrainer, "training_step", step_and_be_signaled)
        with pytest.raises(Stopped, match="stopped after step 7"):
            run(tmp_path / "broken", *flags, data=data)
    again = run(tmp_path / "broken", *flags, data=data)
    assert again.phases[0].resumed_at == [7]
    _require_equal(again, unbroken)
    plain = run(tmp_path / "plain", *flags[:2], *flags[4:], data=data)
    heads = (each.model.classifier[-1].weight for each in (unbroken, plain))
    assert not torch.equal(*heads)


def test_overwrite_output_dir_starts_over_in_the_process_of_the_run_before(
    run: Run, tmp_path: Path
) -> None:
    flags = (
        "--strategy",
        "full",
        "--max_steps",
        "4",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
    )
    run(tmp_path / "run", *flags)
    again = run(tmp_path / "run", *flags, "--overwrite_output_dir", "--seed", "7")
    assert again.phases[0].resumed_at == []


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
