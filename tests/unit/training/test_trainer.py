from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.job import make_job
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.batches import SampledOrder, StepBatches
from hf_transfer.training.engine import run_plan
from hf_transfer.training.trainer import PhaseTrainer, phase_arguments
from tests import checkpoints


@pytest.mark.parametrize(
    ("name", "task"), [("tiny_bert", "text"), ("tiny_resnet", "image"), ("tiny_vit", "image")]
)
def test_accumulated_batches_give_the_loss_of_one_large_batch(
    name: str, task: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(name)
    source = {"text": "builtin:docstrings", "image": "builtin:digits"}[task]
    losses = []
    for batch, accumulated in ((16, 1), (4, 4)):
        config = _config(
            tmp_path,
            *(
                "--strategy",
                "head",
                "--label_smoothing_factor",
                "0.1",
                "--max_steps",
                "2",
                "--logging_strategy",
                "steps",
                "--logging_steps",
                "1",
            ),
            *(
                "--per_device_train_batch_size",
                str(batch),
                "--gradient_accumulation_steps",
                str(accumulated),
            ),
            *("--train_sampling_strategy", "sequential", "--disable_tqdm", "true"),
        )
        rows = find_task(f"{task}-classification")
        data = load_data(DataConfig(source, examples_per_class=4), rows, seed=0)
        checkpoint = checkpoints.load(str(folder), rows, data.labels)
        plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
        trained = run_plan(plan, checkpoint, data, config.training, config.cache)
        losses.append([entry.loss for entry in trained.phases[0].history])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=3e-2)  # dropout differs


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(tiny_vit: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, "--strategy", "full", "--max_steps", "4", "--learning_rate", "1e30")
    task = find_task("image-classification")
    data = load_data(DataConfig("builtin:digits", examples_per_class=2), task, seed=0)
    checkpoint = checkpoints.load(str(tiny_vit), task, data.labels)
    plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
    with pytest.raises(UserError, match="not finite at step 3 of 4"):
        run_plan(plan, checkpoint, data, config.training, config.cache)


def test_each_parameter_has_its_own_learning_rate(tiny_vit: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints.load(str(tiny_vit), find_task("image-classification"), ("a", "b"))
    config = _config(tmp_path)
    arguments = phase_arguments(
        config.training,
        tmp_path,
        learning_rate=1e-3,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        weight_decay=0.1,
        eval_strategy="no",
    )
    names = [name for name, _ in checkpoint.model.named_parameters()]
    rates = {
        name: 1e-2 if name in checkpoint.head else 1e-4 * number
        for number, name in enumerate(names, 1)
    }
    batches = StepBatches(SampledOrder(4, seed=0), batch_size=4)
    trainer = PhaseTrainer(
        model=checkpoint.model, args=arguments, learning_rates=rates, batches=batches
    )
    groups = trainer.create_optimizer().param_groups
    given = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    found = {name: given[id(parameter)] for name, parameter in checkpoint.model.named_parameters()}
    assert len(given) == len(found) > 20
    assert {name: rate for name, (rate, _) in found.items()} == rates
    decays = {name: decay for name, (_, decay) in found.items()}
    assert (decays["classifier.weight"], decays["classifier.bias"]) == (0.1, 0.0)
    assert decays["vit.embeddings.patch_embeddings.projection.weight"] == 0.1


@pytest.mark.parametrize(
    "strategy",
    ["head", "top_layers", "full", "gradual", "head_then_full", "contrastive", "lora", "scratch"],
)
def test_each_strategy_changes_the_parameters_of_its_plan(
    strategy: str, tiny_vit: Path, tmp_path: Path
) -> None:
    config = _config(tmp_path, "--strategy", strategy, "--max_steps", "6")
    task = find_task("image-classification")
    data = load_data(DataConfig("builtin:digits", examples_per_class=2), task, seed=0)
    checkpoint = checkpoints.load(str(tiny_vit), task, data.labels)
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    trained = run_plan(
        choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan,
        checkpoint,
        data,
        config.training,
        config.cache,
    )
    after = trained.model.state_dict()
    assert set(after) == set(before)
    body_changed = any(
        not torch.equal(after[n], before[n]) for n in before if not n.startswith("classifier")
    )
    assert body_changed == (strategy != "head")
    assert sum(phase.steps for phase in trained.phases) == (0 if strategy == "head" else 6)
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_the_same_seed_gives_the_same_weights(tiny_resnet: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, "--max_steps", "4")
    task = find_task("image-classification")
    data = load_data(DataConfig("builtin:digits", examples_per_class=2), task, seed=0)
    runs = []
    for _ in range(2):
        checkpoint = checkpoints.load(str(tiny_resnet), task, data.labels, seed=0)
        plan = choose_plan(TransferConfig(), checkpoint, data, config.training).plan
        runs.append(
            run_plan(plan, checkpoint, data, config.training, config.cache).model.state_dict()
        )
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())


def _config(tmp_path: Path, *flags: str) -> object:
    given = [
        "--model_name_or_path",
        "x",
        "--dataset_name",
        "y",
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
    ]
    return read_config(argv=[*given, *flags])


def test_rows_with_a_transform_are_refused(tiny_vit: Path) -> None:
    task = find_task("image-classification")
    data = load_data(DataConfig("builtin:digits", examples_per_class=2), task, seed=0)
    checkpoint = checkpoints.load(str(tiny_vit), task, data.labels)
    train = data.train.with_transform(lambda rows: rows)
    changed = replace(data, splits={**data.splits, "train": train})
    with pytest.raises(UserError, match="the split 'train' has a transform"):
        make_job(checkpoint, changed, TrainingConfig(use_cpu=True))
