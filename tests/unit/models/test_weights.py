import pytest
import torch
from torch import nn

from hf_transfer.models.weights import (
    copy_weights,
    partial_weights_digest,
    restore_weights,
    weights_digest,
)


@pytest.fixture
def model() -> nn.Module:
    body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    head = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", head)
    for number, tensor in enumerate(model.state_dict().values()):
        tensor.fill_(number)
    return model


HEAD = ("head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias")


def test_the_digests_stay_what_they_are_or_no_run_is_resumed_and_no_activations_are_found(
    model: nn.Module,
) -> None:
    assert weights_digest(model) == "aeeef2bc47a76dbd2411dfc6a46a4488"
    assert partial_weights_digest(model, ()) == "72faefcbbd826ffc4812df8757566b04"
    assert partial_weights_digest(model, HEAD) == "3725e53955ed8d3b73fc2246cc8908a7"
    assert partial_weights_digest(model, HEAD[:1]) == "71f289ea985944aedc684b68a262ffc7"


@pytest.mark.parametrize("name", ["head.1.weight", "head.0.running_mean"])
def test_a_part_of_the_weights_does_not_depend_on_the_rest(model: nn.Module, name: str) -> None:
    whole, part = weights_digest(model), partial_weights_digest(model, HEAD)
    model.state_dict()[name].add_(1)
    assert weights_digest(model) != whole
    assert partial_weights_digest(model, HEAD) == part
    model.state_dict()["body.1.running_mean"].add_(1)
    assert partial_weights_digest(model, HEAD) != part


def test_weights_are_copied_with_their_buffers_and_restored(model: nn.Module) -> None:
    model.get_submodule("body.0").requires_grad_(False)
    copied, before = copy_weights(model), weights_digest(model)
    assert not any(name.startswith("body.0") for name in copied)
    assert {"body.1.running_var", "head.1.bias"} < set(copied)
    for name in copied:
        model.state_dict()[name].add_(1)
    assert weights_digest(model) != before
    restore_weights(model, copied)
    assert weights_digest(model) == before
    with pytest.raises(RuntimeError, match=r"tail\.weight"):
        restore_weights(model, {"tail.weight": torch.ones(1)})
