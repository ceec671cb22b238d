"""A step that is not finite: where the run ends, with which weights, and which examples it names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.record import SkippedStep
from hf_transfer.resume.states import States
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import run_plan
from hf_transfer.training.nan_guard import MAX_SKIPPED_IN_A_ROW, NanGuard
from tests import checkpoints

STEADY = (
    "--lr_scheduler_type",
    "constant",
    "--learning_rate",
    "1e-3",
    "--per_device_train_batch_size",
    "4",
)
NAN = float("nan")


def _key(image: torch.Tensor) -> bytes:
    """The same for an image that was normalised in another order of operations."""
    return image.mul(1000).round().to(torch.int16).numpy().tobytes()


@dataclass
class Poison:
    """Makes a value of a training batch (by number, from 1) NaN, and lists the ids of each batch.

    Its methods are hooks of a model and of a parameter.
    """

    what: str = ""
    at: Sequence[int] = ()
    batches: list[list[str]] = field(default_factory=list)
    calls: int = 0
    id_of_image: dict[bytes, str] = field(default_factory=dict)

    def arm(self, what: str, *at: int) -> None:
        """From the next run on: make this NaN in these batches."""
        self.what, self.at, self.calls = what, at, 0
        self.batches.clear()

    def factor(self, what: str) -> float:
        """What a value is multiplied by."""
        if self.what != what:
            return 1.0
        self.calls += 1
        return NAN if self.calls in self.at else 1.0

    def attach(self, checkpoint: Checkpoint, rows: Dataset) -> None:
        """Add the hooks to a model that is trained on these rows."""
        encoder = make_encoder(checkpoint.task, checkpoint.processor, checkpoint.model.config)
        images = encoder.batch(list(encoder.rows(rows)))["pixel_values"]
        ids = zip(images, rows["id"], strict=True)
        self.id_of_image = {_key(image): row_id for image, row_id in ids}
        assert len(self.id_of_image) == len(rows)
        checkpoint.model.register_forward_pre_hook(self.before_forward, with_kwargs=True)
        checkpoint.model.register_forward_hook(self.after_forward)
        parameters = checkpoint.model.named_parameters()
        head = next(parameter for name, parameter in parameters if name in checkpoint.head)
        head.register_hook(lambda gradient: gradient * self.factor("gradient"))

    def before_forward(self, model: torch.nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        """List the ids of a batch, and multiply its last image."""
        if model.training:
            images = inputs["pixel_values"]
            self.batches.append([self.id_of_image[_key(image)] for image in images])
            images[-1] *= self.factor("input")

    def after_forward(self, model: torch.nn.Module, args: Any, outputs: Any) -> None:
        """Multiply the logits, and so the loss."""
        if model.training:
            outputs["logits"] = outputs["logits"] * self.factor("loss")


@pytest.fixture
def poison() -> Poison:
    """What makes batches NaN in the runs of this test."""
    return Poison()


@pytest.fixture
def train(poison: Poison, tmp_path: Path) -> Callable[..., Any]:
    """A function that trains all of a model on twenty digits, five steps an epoch."""
    task = find_task("image-classification")
    rows = load_data(DataConfig("builtin:digits", examples_per_class=2), task, seed=0)

    def run(
        model: Path, steps: int, *flags: str, folder: str = "run", validation: bool = False
    ) -> Any:
        data = (
            replace(rows, splits={**rows.splits, "validation": rows.train}) if validation else rows
        )
        given = [
            "--model_name_or_path",
            "x",
            "--dataset_name",
            "y",
            "--output_dir",
            str(tmp_path / folder),
        ]
        wanted = [
            *given,
            "--use_cpu",
            "--disable_tqdm",
            "true",
            "--strategy",
            "full",
            *STEADY,
            *flags,
        ]
        config = read_config(argv=[*wanted, "--max_steps", str(steps)])
        checkpoint = checkpoints.load(str(model), task, data.labels, seed=0)
        poison.attach(checkpoint, data.train)
        plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
        return run_plan(plan, checkpoint, data, config.training, config.cache)

    return run


def _require_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert len(one) > 20
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def _saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    state = States(folder / "checkpoints").newest()
    assert state is not None
    return state.load("weights")


@pytest.mark.parametrize("what", ["loss", "gradient", "input"])
@pytest.mark.parametrize("model", ["tiny_vit", "tiny_resnet"])
def test_a_step_that_is_not_finite_ends_the_run_with_the_weights_before_it(
    what: str,
    model: str,
    train: Any,
    poison: Poison,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder = request.getfixturevalue(model)
    poison.arm(what, 3)
    with pytest.raises(UserError, match="not finite at step 3 of 8") as refused:
        train(folder, 8)
    ids = poison.batches[2]
    assert len(ids) == 4
    assert f"(examples {', '.join(ids)})" in refused.value.message
    assert "the state after step 2 is saved" in refused.value.message
    assert "--on_nan rollback" in refused.value.hint
    saved = _saved_weights(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    poison.arm("", 0)
    _require_same(saved, train(folder, 2, folder="shorter").model.state_dict())


@pytest.mark.parametrize("what", ["loss", "gradient", "input"])
def test_a_step_that_is_skipped_leaves_no_trace_in_weights_and_batch_statistics(
    what: str, train: Any, poison: Poison, tiny_resnet: Path
) -> None:
    poison.arm(what, 3)
    skipped = train(tiny_resnet, 3, "--on_nan", "rollback")
    assert skipped.phases[0].skipped_steps == [SkippedStep(2, poison.batches[2])]
    assert skipped.phases[0].steps == 3
    poison.arm("", 0)
    after = skipped.model.state_dict()
    assert sum("running" in name or "num_batches" in name for name in after) >= 6
    _require_same(after, train(tiny_resnet, 2, folder="shorter").model.state_dict())


def test_one_broken_batch_of_several_accumulated_ones_skips_the_step_and_names_all_of_it(
    train: Any, poison: Poison, tiny_resnet: Path
) -> None:
    flags = (
        "--gradient_accumulation_steps",
        "2",
        "--per_device_train_batch_size",
        "2",
        "--on_nan",
        "rollback",
    )
    poison.arm("input", 3)  # the first of two
    skipped = train(tiny_resnet, 2, *flags)
    (step,) = skipped.phases[0].skipped_steps
    assert step.step == 1
    assert sorted(step.ids) == sorted([*poison.batches[2], *poison.batches[3]])
    poison.arm("", 0)
    _require_same(
        skipped.model.state_dict(),
        train(tiny_resnet, 1, *flags, folder="shorter").model.state_dict(),
    )


def test_the_logged_loss_is_the_mean_over_the_steps_that_count(
    train: Any, poison: Poison, tiny_resnet: Path
) -> None:
    losses = {}
    for every in (1, 4):
        poison.arm("input", 3)
        flags = (
            "--on_nan",
            "rollback",
            "--logging_strategy",
            "steps",
            "--logging_steps",
            str(every),
        )
        history = train(tiny_resnet, 4, *flags, folder=str(every)).phases[0].history
        losses[every] = {entry.step: entry.loss for entry in history}
    assert sorted(losses[1]) == [1, 2, 4]
    assert losses[4] == {4: pytest.approx(sum(losses[1].values()) / 3, rel=1e-5)}


def test_ten_steps_in_a_row_that_are_not_finite_end_the_run(
    train: Any, poison: Poison, tiny_vit: Path
) -> None:
    poison.arm("loss", *range(3, 100))
    with pytest.raises(UserError, match="10 steps in a row are not finite"):
        train(tiny_vit, 30, "--on_nan", "rollback")
    assert len(poison.batches) == 2 + MAX_SKIPPED_IN_A_ROW


def test_the_same_run_resumes_with_rollback_to_what_it_would_have_been(
    train: Any, poison: Poison, tiny_resnet: Path
) -> None:
    poison.arm("input", 3)
    with pytest.raises(UserError, match="the state after step 2 is saved"):
        train(tiny_resnet, 5)
    poison.arm("input", 1)  # the first batch after resuming
    resumed = train(tiny_resnet, 5, "--on_nan", "rollback")
    poison.arm("input", 3)
    unbroken = train(tiny_resnet, 5, "--on_nan", "rollback", folder="unbroken")
    assert (resumed.phases[0].resumed_at, unbroken.phases[0].resumed_at) == ([2], [])
    assert resumed.phases[0].skipped_steps == unbroken.phases[0].skipped_steps
    assert [step.step for step in resumed.phases[0].skipped_steps] == [2]
    _require_same(resumed.model.state_dict(), unbroken.model.state_dict())


def test_the_very_first_step_can_be_the_broken_one(
    train: Any, poison: Poison, tiny_resnet: Path
) -> None:
    poison.arm("input", 1)
    with pytest.raises(UserError, match=r"at step 1 of 3 .* the state after step 0 is saved"):
        train(tiny_resnet, 3)
    poison.arm("input", 1)
    resumed = train(tiny_resnet, 3, "--on_nan", "rollback")
    assert [step.step for step in resumed.phases[0].skipped_steps] == [0]
    assert resumed.phases[0].steps == 3
    assert all(tensor.isfinite().all() for tensor in resumed.model.state_dict().values())


def test_a_step_after_an_evaluation_leaves_no_trace_either(
    train: Any, poison: Poison, tiny_resnet: Path
) -> None:
    poison.arm("gradient", 3)
    flags = ("--on_nan", "rollback", "--eval_steps", "2", "--load_best_model_at_end", "false")
    skipped = train(tiny_resnet, 3, *flags, validation=True)
    assert [entry.step for entry in skipped.phases[0].history if entry.eval_loss is not None] == [
        2,
        3,
    ]
    poison.arm("", 0)
    shorter = train(tiny_resnet, 2, *flags, folder="shorter", validation=True)
    _require_same(skipped.model.state_dict(), shorter.model.state_dict())


def test_in_an_epoch_with_no_step_that_counts_nothing_is_logged(
    train: Any, poison: Poison, tiny_vit: Path
) -> None:
    poison.arm("loss", 1, 2, 3, 4, 5)
    phase = train(tiny_vit, 10, "--on_nan", "rollback").phases[0]
    assert [entry.step for entry in phase.history] == [10]
    assert len(phase.skipped_steps) == 5


def _guard() -> NanGuard:
    guard = NanGuard(lambda step: [f"train/{step}"], rolls_back=True)
    guard.begin_step(torch.nn.Linear(1, 1), torch.zeros(()))
    return guard


def test_only_steps_in_a_row_count_towards_the_end() -> None:
    guard = _guard()
    for step in range(8 * MAX_SKIPPED_IN_A_ROW):
        guard.count_step(step, is_skipped=step % MAX_SKIPPED_IN_A_ROW != 0)
    assert len(guard.skipped) == 8 * (MAX_SKIPPED_IN_A_ROW - 1)


def test_an_overflow_of_scaled_gradients_is_left_to_their_scaler() -> None:
    guard = _guard()
    guard.record_loss(torch.tensor(1.0))
    assert not guard.is_broken(torch.tensor(float("inf")), scaled=True)
    assert guard.is_broken(torch.tensor(float("inf")), scaled=False)
    guard.record_loss(torch.tensor(NAN))
    assert guard.is_broken(torch.tensor(1.0), scaled=True)


def test_of_many_examples_a_message_names_some_and_counts_the_rest() -> None:
    guard = NanGuard(lambda step: [f"train/{row}" for row in range(20)], rolls_back=False)
    assert "train/0, train/1" in guard.error(3, 9, "").message
    assert "train/7 and 12 more)" in guard.error(3, 9, "").message


def test_skipped_steps_are_part_of_the_state() -> None:
    guard, again = _guard(), _guard()
    guard.count_step(4, is_skipped=True)
    again.load_state_dict(guard.state_dict())
    assert (again.skipped, again.in_a_row) == ([{"step": 4, "ids": ["train/4"]}], 1)
