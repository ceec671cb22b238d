"""The best step is restored with all its tensors; training stops early; metrics are shown once."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_transfer.tasks import find_task
from hf_transfer.training.callbacks import BestStep, LogLines, ProgressBar
from tests import checkpoints


def _control() -> SimpleNamespace:
    return SimpleNamespace(should_training_stop=False)


def _state(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_all_tensors_of_the_best_step_are_restored(
    name: str, request: pytest.FixtureRequest
) -> None:
    # The control: a Trainer restores 8 of 40 tensors of a ViT (transformers issue 43701).
    folder: Path = request.getfixturevalue(name)
    model = checkpoints.load(str(folder), find_task("image-classification"), ("a", "b")).model
    best = BestStep(model, "loss", patience=None)
    best.on_evaluate(None, _state(1), _control(), {"eval_loss": 0.5})
    expected = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    best.on_evaluate(None, _state(2), _control(), {"eval_loss": 0.7})
    best.on_train_end(None, _state(2), _control())
    assert len(expected) > 20
    assert all(torch.equal(tensor, expected[n]) for n, tensor in model.state_dict().items())


def test_training_stops_after_patience_evaluations_without_improvement() -> None:
    best, control = BestStep(torch.nn.Linear(1, 1), "accuracy", patience=2), _control()
    stops = []
    for step, value in enumerate([0.5, 0.6, 0.6, 0.4]):
        best.on_evaluate(None, _state(step), control, {"eval_accuracy": value})
        stops.append(control.should_training_stop)
    assert stops == [False, False, False, True]
    assert best.best_step == 1


@pytest.mark.parametrize(("is_main", "lines"), [(True, ["step 3 of 9: loss 0.1235"]), (False, [])])
def test_a_line_of_the_log_has_the_newest_metrics_on_the_main_process(
    is_main: bool, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    state = SimpleNamespace(global_step=3, max_steps=9, is_world_process_zero=is_main)
    with caplog.at_level(logging.INFO):
        LogLines().on_log(None, state, _control(), {"loss": 0.123456, "grad_norm": 1.0})
        LogLines().on_log(None, state, _control(), {"train_runtime": 1.0})
    assert [record.message for record in caplog.records] == lines


def test_the_progress_bar_shows_the_newest_metrics_at_its_end() -> None:
    shown: list[dict[str, str]] = []
    bar = ProgressBar()
    bar.training_bar = SimpleNamespace(set_postfix=lambda values, **_: shown.append(values))
    for logs in ({"loss": 0.12345, "epoch": 1.0}, {"train_runtime": 1.0}):
        bar.on_log(None, _state(1), _control(), logs)
    assert shown == [{"loss": "0.123"}]
