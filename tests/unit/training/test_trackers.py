"""--report_to: one run of a tracker for all phases, with steps that go on."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_transfer.cli.flags import read_config
from hf_transfer.config.run import COMPARING, RunConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import UserError
from hf_transfer.studies.choose import choose_plan
from hf_transfer.training.engine import run_plan
from hf_transfer.training.packages import OPTIMIZERS, TRACKERS, require_packages
from hf_transfer.training.trackers import open_trackers
from tests import checkpoints


def _config(folder: Path, *flags: str) -> RunConfig:
    words = ["--model_name_or_path", "x", "--dataset_name", "builtin:digits", "--use_cpu"]
    words += ["--report_to", "tensorboard", "--logging_strategy", "steps", "--logging_steps", "1"]
    words += ["--disable_tqdm", "true", "--output_dir", str(folder)]
    return read_config("image-classification", argv=[*words, *flags])


@pytest.fixture(scope="module")
def digits() -> Data:
    config = _config(Path("unused"), "--examples_per_class", "4")
    data = load_data(config.data, "image-classification", seed=0)
    return replace(data, splits={name: data.splits[name] for name in ("train", "test")})


class KilledError(Exception):
    """A run that is killed."""


def _run(config: RunConfig, data: Data, model: Path, die_at: int | None = None) -> None:
    checkpoint = checkpoints.load(str(model), data.task, data.labels)
    choice = choose_plan(config.transfer, checkpoint, data, config.training, config.cache)
    calls = itertools.count(1)

    def count(*_: object) -> None:
        if next(calls) == die_at:
            raise KilledError

    hook = checkpoint.model.classifier.weight.register_hook(count)
    try:
        run_plan(choice.plan, checkpoint, data, config.training, config.cache)
    finally:
        hook.remove()


def _id_of(folder: Path) -> str:
    return (folder / "checkpoints" / "reports" / "tracker_id.txt").read_text()


def _logged_steps(folder: Path) -> list[int]:
    reports = folder / "checkpoints" / "reports"
    events = EventAccumulator(str(reports), purge_orphaned_data=False)  # as it was written
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_the_steps_of_all_phases_are_one_run(tiny_vit: Path, digits: Data, tmp_path: Path) -> None:
    config = _config(tmp_path, "--strategy", "gradual", "--max_steps", "9")
    _run(config, digits, tiny_vit)
    steps = _logged_steps(tmp_path)
    assert len(steps) > 6
    assert steps == sorted(set(steps))
    assert steps[-1] == 9
    files = list((tmp_path / "checkpoints" / "reports").glob("events.*"))
    assert len(files) == 1


def test_a_run_that_starts_over_begins_a_new_report(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    flags = ("--strategy", "full", "--max_steps", "2", "--overwrite_output_dir", "true")
    names = []
    for _ in range(2):
        _run(_config(tmp_path, *flags), digits, tiny_vit)
        names.append(_id_of(tmp_path))
    assert names[0] != names[1]
    assert _logged_steps(tmp_path) == [1, 2]


def test_a_resumed_run_goes_on_in_the_same_report(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    flags = ("--strategy", "gradual", "--max_steps", "9", "--save_minutes", "0")
    often = ("--save_strategy", "steps", "--save_steps", "3")
    with pytest.raises(KilledError):
        _run(_config(tmp_path, *flags, *often), digits, tiny_vit, die_at=9)
    name = _id_of(tmp_path)
    assert _logged_steps(tmp_path)[-1] == 8  # the last state is of two steps before
    _run(_config(tmp_path, *flags, *often), digits, tiny_vit)
    assert _id_of(tmp_path) == name
    assert _logged_steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8, 8, 9]


def test_two_runs_of_a_process_are_two_reports(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        config = _config(tmp_path / name, "--strategy", "full", "--max_steps", "2")
        _run(config, digits, tiny_vit)
        assert "WANDB_RUN_ID" not in os.environ
    assert _id_of(tmp_path / "one") != _id_of(tmp_path / "other")


@pytest.mark.parametrize("is_trial", [True, False])
def test_without_an_output_folder_nothing_is_reported(
    is_trial: bool, caplog: pytest.LogCaptureFixture
) -> None:
    training = TrainingConfig(use_cpu=True, report_to="tensorboard")
    assert open_trackers(training, is_trial) is None
    assert ("does not report to tensorboard" in caplog.text) is not is_trial


def test_a_comparison_does_not_report(tmp_path: Path) -> None:
    words = ["--model_name_or_path", "x", "--dataset_name", "y", "--use_cpu"]
    words += ["--output_dir", str(tmp_path / "out"), "--report_to", "tensorboard", "wandb"]
    with pytest.raises(UserError, match="--report_to tensorboard wandb does not belong"):
        read_config(groups=COMPARING, argv=words)


def test_wandb_has_one_finished_run_whose_steps_go_on(
    tiny_vit: Path, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = []

    def record(run: object, values: dict[str, float]) -> None:
        logged.append(values["train/global_step"])

    monkeypatch.setattr(wandb.Run, "log", record)
    flags = ("--strategy", "gradual", "--max_steps", "9", "--report_to", "wandb")
    _run(_config(tmp_path / "out", *flags), digits, tiny_vit)
    assert wandb.run is None
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(_id_of(tmp_path / "out"))
    assert logged == sorted(logged)
    assert logged[-1] == 9


def test_trackio_has_one_run_whose_steps_go_on(
    tiny_vit: Path, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    logged = []
    monkeypatch.setattr(trackio, "log", lambda values: logged.append(values["train/global_step"]))
    flags = ("--strategy", "gradual", "--max_steps", "9", "--report_to", "trackio")
    _run(_config(tmp_path / "out", *flags), digits, tiny_vit)
    assert logged == sorted(logged)
    assert logged[-1] == 9


def test_trials_do_not_report(tiny_vit: Path, digits: Data, tmp_path: Path) -> None:
    config = _config(tmp_path, "--strategy", "auto", "--max_steps", "4")
    _run(config, digits, tiny_vit)
    assert len(list((tmp_path / "checkpoints" / "reports").glob("events.*"))) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report_to": "nope"}, "unknown value of --report_to 'nope'"),
        ({"report_to": "dvclive"}, "--report_to dvclive needs the package dvclive"),
        ({"optim": "adamw_bnb_8bit"}, "--optim adamw_bnb_8bit needs the package bitsandbytes"),
        ({"optim": "paged_lion_32bit"}, "--optim paged_lion_32bit needs the package bitsandbytes"),
        ({"optim": "galore_adamw"}, "--optim galore_adamw needs the package galore-torch"),
        ({"optim": "apollo_adamw"}, "--optim apollo_adamw needs the package apollo-torch"),
        ({"optim": "adalomo"}, "--optim adalomo needs the package lomo-optim"),
        (
            {"optim": "schedule_free_sgd"},
            "--optim schedule_free_sgd needs the package schedulefree",
        ),
        ({"optim": "adamw_torch_8bit"}, "--optim adamw_torch_8bit needs the package torchao"),
        ({"fp16": True}, "--fp16 needs a GPU"),
    ],
)
def test_what_is_not_installed_is_refused_with_what_brings_it(
    changes: dict[str, object], message: str
) -> None:
    training = TrainingConfig(use_cpu=True, **changes)
    with pytest.raises(UserError) as refusal:
        require_packages(training)
    assert message in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd", "rmsprop", "adagrad"])
def test_optimizers_of_torch_need_nothing(optim: str) -> None:
    require_packages(TrainingConfig(use_cpu=True, optim=optim, report_to="none"))


def test_every_tracker_and_optimizer_of_transformers_is_known() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    assert set(INTEGRATION_TO_CALLBACK) <= set(TRACKERS)
    plain = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    others = [str(each.value) for each in OptimizerNames if each.value not in plain]
    assert len(others) > 30
    assert all(any(part in name for part in OPTIMIZERS) for name in others)
