from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.config.run import PRETRAINING
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import UserError
from hf_transfer.job import make_job
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.freeze import training_only
from hf_transfer.models.weights import copy_weights, restore_weights
from hf_transfer.record import PhaseFacts
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.averaging import (
    WeightAveraging,
    add_weight_averaging,
    select_by_validation,
    update_batch_norm,
)
from hf_transfer.training.batches import SampledOrder, StepBatches
from hf_transfer.training.engine import Trained, run_plan
from hf_transfer.training.losses import cross_entropy, mean_loss
from hf_transfer.training.trainer import PhaseTrainer, phase_arguments, validation_metrics
from tests import checkpoints

TASK = find_task("image-classification")
STEADY = ("--lr_scheduler_type", "constant", "--warmup_steps", "0")


class Recorder(TrainerCallback):
    """Copies the weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        self.steps.append(
            {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        )


@dataclass
class Phase:
    """The last phase of a plan, ready to run on its own."""

    trainer: PhaseTrainer
    averaging: WeightAveraging | None
    recorder: Recorder


@pytest.fixture(scope="module")
def digits() -> Data:
    """80 digits to learn from and 50 to validate on."""
    data = load_data(DataConfig("builtin:digits"), TASK, seed=0)
    rows = data.validation.shuffle(seed=0)
    splits = {
        "train": data.train.shuffle(seed=0).select(range(80)),
        "validation": rows.select(range(50)),
    }
    return replace(data, splits={**splits, "test": data.test.select(range(10))})


# --- the mean of the last steps ---


def test_the_average_is_the_mean_of_the_weights_of_the_last_steps(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    phase = _phase(
        tiny_vit,
        digits,
        tmp_path,
        "--strategy",
        "full",
        "--average_last",
        "0.5",
        "--max_steps",
        "8",
    )
    phase.trainer.train()
    last = phase.recorder.steps[4:]
    assert len(last) == phase.averaging.averaged_steps == 4
    assert set(phase.averaging.average) == {
        name for name, _ in phase.trainer.model.named_parameters()
    }
    for name, mean in phase.averaging.average.items():
        torch.testing.assert_close(mean, torch.stack([weights[name] for weights in last]).mean(0))


def test_the_average_holds_only_what_learns(tiny_vit: Path, digits: Data, tmp_path: Path) -> None:
    flags = (
        "--strategy",
        "top_layers",
        "--trainable_layers",
        "1",
        "--average_last",
        "1",
        "--max_steps",
        "2",
    )
    phase = _phase(tiny_vit, digits, tmp_path, *flags)
    learning = [name for name, _ in phase.trainer.model.named_parameters() if "classifier" in name]
    with training_only(phase.trainer.model, learning):
        phase.trainer.train()
    assert sorted(phase.averaging.average) == sorted(learning)
    assert len(learning) == 2


def test_an_average_that_is_better_than_the_last_step_is_selected(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    flags = (
        "--average_last",
        "0.5",
        "--learning_rate",
        "0.05",
        "--load_best_model_at_end",
        "false",
    )
    trained = _run(
        tiny_vit, digits, tmp_path, "--strategy", "full", "--max_steps", "20", *flags, *STEADY
    )
    values = _values(trained.phases[0])
    assert list(values) == ["last step", "average of the last 10 steps"]
    assert values["average of the last 10 steps"] < values["last step"]
    assert trained.phases[0].kept == "average of the last 10 steps"
    assert _loss(trained, digits) == pytest.approx(min(values.values()), rel=1e-4)


def test_an_average_that_is_worse_than_the_last_step_changes_nothing(
    tiny_resnet: Path, digits: Data, tmp_path: Path
) -> None:
    # While the loss still falls, the mean lags behind.
    flags = (
        "--strategy",
        "full",
        "--max_steps",
        "30",
        "--load_best_model_at_end",
        "false",
        "--learning_rate",
        "1e-2",
    )
    averaged = _run(tiny_resnet, digits, tmp_path, *flags, "--average_last", "1")
    plain = _run(tiny_resnet, digits, tmp_path, *flags)
    assert averaged.phases[0].kept == "last step"
    assert _same(averaged.model.state_dict(), plain.model.state_dict())
    assert averaged.phases[0].history == plain.phases[0].history


def test_without_the_options_the_record_has_no_candidates(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    trained = _run(tiny_vit, digits, tmp_path, "--strategy", "full", "--max_steps", "2")
    assert (trained.phases[0].kept, trained.phases[0].candidates) == (None, None)


def test_metric_for_best_model_selects(tiny_vit: Path, digits: Data, tmp_path: Path) -> None:
    flags = ("--average_last", "0.5", "--metric_for_best_model", "accuracy", "--max_steps", "6")
    facts = _run(tiny_vit, digits, tmp_path, "--strategy", "full", *flags).phases[0]
    values = _values(facts)
    assert len(values) == 2
    assert all(round(50 * value, 6) == round(50 * value) for value in values.values())
    assert values[facts.kept] == max(values.values())


def test_adapters_are_averaged_too(tiny_vit: Path, digits: Data, tmp_path: Path) -> None:
    flags = ("--average_last", "0.5", "--learning_rate", "0.1", "--load_best_model_at_end", "false")
    trained = _run(
        tiny_vit, digits, tmp_path, "--strategy", "lora", "--max_steps", "20", *flags, *STEADY
    )
    values = _values(trained.phases[0])
    assert len(values) == 2
    assert _loss(trained, digits) == pytest.approx(min(values.values()), rel=1e-3)


def test_a_contrastive_phase_has_no_validation_loss_to_select_by(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--average_last does not belong to --strategy contrastive"):
        _run(
            tiny_vit,
            digits,
            tmp_path,
            "--strategy",
            "contrastive",
            "--max_steps",
            "2",
            "--average_last",
            "0.5",
        )


def test_the_selected_weights_are_saved(tiny_resnet: Path, digits: Data, tmp_path: Path) -> None:
    flags = ("--average_last", "0.5", "--learning_rate", "0.05", "--max_steps", "8", *STEADY)
    trained = _run(tiny_resnet, digits, tmp_path, "--strategy", "full", *flags)
    assert trained.phases[0].kept == "average of the last 4 steps"
    trained.model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    again = type(trained.model).from_pretrained(tmp_path / "saved")
    assert len(saved) == len(trained.model.state_dict()) > 20
    assert _same(again.state_dict(), trained.model.state_dict())


# --- BatchNorm ---


def test_the_statistics_of_an_average_are_those_of_the_training_rows(
    tiny_resnet: Path, digits: Data, tmp_path: Path
) -> None:
    flags = (
        "--strategy",
        "full",
        "--average_last",
        "0.5",
        "--max_steps",
        "4",
        "--learning_rate",
        "0.05",
    )
    phase = _phase(tiny_resnet, digits, tmp_path, *flags, "--per_device_train_batch_size", "80")
    model = phase.trainer.model
    phase.trainer.train()
    restore_weights(model, phase.averaging.average)
    update_batch_norm(phase.trainer)
    norm = model.resnet.embedder.embedder.normalization
    seen: list[torch.Tensor] = []
    handle = norm.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].detach())
    )
    batch = phase.trainer.data_collator([phase.trainer.train_dataset[n] for n in range(80)])
    model.eval()(pixel_values=batch["pixel_values"])
    handle.remove()
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, seen[0].var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1


def test_the_statistics_of_frozen_norms_stay(
    tiny_resnet: Path, digits: Data, tmp_path: Path
) -> None:
    phase = _phase(tiny_resnet, digits, tmp_path, "--strategy", "full", "--max_steps", "1")
    model = phase.trainer.model
    before = copy_weights(model)
    frozen = [name for name, _ in model.named_buffers() if "embedder" in name]
    running = [
        name
        for name, _ in model.named_buffers()
        if "running_mean" in name and "embedder" not in name
    ]
    with training_only(
        model, [name for name, _ in model.named_parameters() if "embedder" not in name]
    ):
        update_batch_norm(phase.trainer)
    after = dict(model.named_buffers())
    assert frozen
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert running
    assert not any(torch.equal(after[name], before[name]) for name in running)


# --- WiSE-FT ---


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_where_training_did_harm_exactly_the_initial_weights_are_restored(
    name: str, digits: Data, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # Statistics and weights: those of a body that was never touched.
    folder: Path = request.getfixturevalue(name)
    before = checkpoints.load(str(folder), TASK, digits.labels).model.state_dict()
    flags = (
        "--wise_ft",
        "true",
        "--learning_rate",
        "3",
        "--load_best_model_at_end",
        "false",
        "--max_steps",
        "4",
    )
    trained = _run(folder, digits, tmp_path, "--strategy", "head_then_full", *flags, *STEADY)
    assert trained.phases[0].kept is None
    assert trained.phases[1].kept == "0.0 of the way (WiSE-FT)"
    body = {key: tensor for key, tensor in before.items() if not key.startswith("classifier")}
    assert len(body) > 10
    assert _same(body, {key: trained.model.state_dict()[key] for key in body})


def test_interpolation_goes_from_the_initial_to_the_final_weights(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    flags = (
        "--strategy",
        "head_then_full",
        "--wise_ft",
        "true",
        "--max_steps",
        "6",
        "--learning_rate",
        "1e-3",
    )
    phase = _phase(tiny_vit, digits, tmp_path, *flags)
    began = copy_weights(phase.trainer.model)
    phase.trainer.train()
    ended = copy_weights(phase.trainer.model)
    way = list(phase.averaging.candidates(ended))
    assert [each.name[:3] for each in way] == [
        "0.0",
        "0.1",
        "0.2",
        "0.3",
        "0.4",
        "0.5",
        "0.6",
        "0.7",
        "0.8",
        "0.9",
    ]
    assert _same(way[0].weights, began)
    for name, weight in way[7].weights.items():
        torch.testing.assert_close(weight, 0.3 * began[name] + 0.7 * ended[name])
    names = [
        each["name"]
        for each in select_by_validation(phase.trainer, phase.averaging, "last step")["candidates"]
    ]
    assert names == ["last step", *(each.name for each in way)]


def test_a_tie_goes_to_the_final_weights(tiny_vit: Path, digits: Data, tmp_path: Path) -> None:
    flags = ("--learning_rate", "1e-30", "--weight_decay", "0", "--average_last", "1")
    facts = _run(
        tiny_vit,
        digits,
        tmp_path,
        "--strategy",
        "head_then_full",
        "--max_steps",
        "3",
        "--eval_strategy",
        "no",
        *flags,
    ).phases[1]
    assert len(facts.candidates) == 2
    assert len(set(_values(facts).values())) == 1
    assert facts.kept == "last step"


def test_a_phase_that_ended_where_it_began_has_nothing_to_interpolate(
    tiny_resnet: Path, digits: Data, tmp_path: Path
) -> None:
    flags = ("--wise_ft", "true", "--learning_rate", "3", "--max_steps", "3", *STEADY)
    facts = _run(tiny_resnet, digits, tmp_path, "--strategy", "head_then_full", *flags).phases[1]
    assert facts.best_step == 0
    assert list(_values(facts)) == ["best step"]


def test_of_gradual_only_the_last_phase_is_interpolated(
    tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    trained = _run(
        tiny_vit, digits, tmp_path, "--strategy", "gradual", "--wise_ft", "true", "--max_steps", "4"
    )
    assert [phase.kept is not None for phase in trained.phases] == [False, False, True]


def test_what_was_the_best_step_is_called_so(tiny_vit: Path, digits: Data, tmp_path: Path) -> None:
    flags = (
        "--learning_rate",
        "3",
        "--average_last",
        "0.5",
        "--max_steps",
        "4",
        "--eval_on_start",
        "true",
        *STEADY,
    )
    facts = _run(tiny_vit, digits, tmp_path, "--strategy", "full", *flags).phases[0]
    assert facts.best_step == 0
    assert facts.kept == "best step"


# --- what does not fit ---


@pytest.mark.parametrize("flags", [("--average_last", "0.25"), ("--wise_ft", "true")])
def test_without_a_validation_split_nothing_could_be_selected(
    flags: tuple[str, ...], tiny_vit: Path, digits: Data, tmp_path: Path
) -> None:
    alone = replace(digits, splits={"train": digits.train, "test": digits.test})
    with pytest.raises(UserError, match=f"{flags[0]} needs a validation split") as refusal:
        _run(tiny_vit, alone, tmp_path, *flags)
    assert "--validation_split" in refusal.value.hint


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_out_of_range_is_refused(share: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"--average_last {share} is (too small|too large|no finite number)"
    ):
        _config(tmp_path, f"--average_last={share}")


@pytest.mark.parametrize(
    "strategy", ["head", "full", "top_layers", "lora", "scratch", "contrastive"]
)
def test_wise_ft_is_refused_where_no_head_learned_before_the_rest(
    strategy: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=f"--wise_ft does not belong to --strategy {strategy}"
    ) as refusal:
        _config(tmp_path, "--wise_ft", "true", "--strategy", strategy)
    assert "head_then_full, gradual, auto" in refusal.value.hint


def test_wise_ft_is_refused_in_pre_training(tmp_path: Path) -> None:
    flags = [
        "--model_type",
        "resnet",
        "--dataset_name",
        "y",
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
    ]
    with pytest.raises(UserError, match="--wise_ft does not belong to --strategy scratch"):
        read_config(groups=PRETRAINING, argv=[*flags, "--wise_ft", "true"])


def _config(tmp_path: Path, *flags: str) -> Any:
    given = [
        "--model_name_or_path",
        "x",
        "--dataset_name",
        "y",
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
    ]
    return read_config(argv=[*given, "--disable_tqdm", "true", *flags])


def _checkpoint(folder: Path, data: Data) -> Checkpoint:
    return checkpoints.load(str(folder), TASK, data.labels, seed=0)


def _run(folder: Path, data: Data, tmp_path: Path, *flags: str) -> Trained:
    config, checkpoint = _config(tmp_path, *flags), _checkpoint(folder, data)
    return run_plan(
        make_plan(config.transfer, make_job(checkpoint, data, config.training)),
        checkpoint,
        data,
        config.training,
        config.cache,
    )


def _phase(folder: Path, data: Data, tmp_path: Path, *flags: str) -> Phase:
    config, checkpoint = _config(tmp_path, *flags), _checkpoint(folder, data)
    plan = make_plan(config.transfer, make_job(checkpoint, data, config.training))
    encoder = make_encoder(TASK, checkpoint.processor, checkpoint.model.config)
    changes = {"learning_rate": plan.learning_rate, "per_device_train_batch_size": plan.batch_size}
    schedule = {"num_train_epochs": 1, "weight_decay": 0.0}
    recorder = Recorder()
    trainer = PhaseTrainer(
        model=checkpoint.model,
        args=phase_arguments(config.training, tmp_path, **changes, **schedule, eval_strategy="no"),
        train_dataset=encoder.rows(data.train),
        eval_dataset=encoder.rows(data.validation),
        data_collator=encoder.collate,
        compute_metrics=validation_metrics(mean_loss(cross_entropy), has_classes=True),
        compute_loss_func=mean_loss(cross_entropy),
        learning_rates={},
        batches=StepBatches(SampledOrder(len(data.train), seed=0), plan.batch_size),
        callbacks=[recorder],
    )
    return Phase(
        trainer, add_weight_averaging(trainer, plan.phases[-1], plan, config.training), recorder
    )


def _loss(trained: Trained, data: Data) -> float:
    """The loss of the finished model on the validation split, by hand."""
    rows = trained.encoder.rows(data.validation)
    batch = trained.encoder.batch([rows[n] for n in range(len(rows))])
    with torch.no_grad():
        logits = trained.model(pixel_values=batch["pixel_values"]).logits
    return float(nn.functional.cross_entropy(logits, batch["labels"]))


def _values(facts: PhaseFacts) -> dict[str, float]:
    return {each.name: each.value for each in facts.candidates}


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )
