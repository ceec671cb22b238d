from pathlib import Path

import torch

from hf_transfer.models.freeze import training_only
from hf_transfer.tasks import find_task
from tests import checkpoints


def test_one_step_changes_the_head_and_nothing_else_buffers_included(tiny_resnet: Path) -> None:
    checkpoint = checkpoints.load(
        str(tiny_resnet), find_task("image-classification"), ("a", "b", "c")
    )
    model = checkpoint.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    with training_only(model, checkpoint.new_parameters):
        model.train()
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
        )
        model(
            pixel_values=torch.randn(8, 3, 16, 16), labels=torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        ).loss.backward()
        optimizer.step()
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == set(checkpoint.new_parameters)


def test_dropout_of_a_frozen_body_is_off_however_often_train_is_called(tiny_bert: Path) -> None:
    checkpoint = checkpoints.load(str(tiny_bert), find_task("text-classification"), ("a", "b"))
    model = checkpoint.model
    with training_only(model, checkpoint.new_parameters):
        for _ in range(3):
            model.train()
        modes = {name: module.training for name, module in model.named_modules()}
    assert not any(training for name, training in modes.items() if name.startswith("bert"))
    assert modes["dropout"]
    assert modes["classifier"]


def test_afterwards_everything_learns_again(tiny_bert: Path) -> None:
    checkpoint = checkpoints.load(str(tiny_bert), find_task("text-classification"), ("a", "b"))
    with training_only(checkpoint.model, checkpoint.new_parameters):
        pass
    checkpoint.model.train()
    assert all(parameter.requires_grad for parameter in checkpoint.model.parameters())
    assert all(module.training for module in checkpoint.model.modules())
