from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, set_seed

from hf_transfer.frozen.split import Boundary, UnsplittableError, split_model
from hf_transfer.models.adapters import merge, wrap_with_adapter
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.freeze import training_only
from hf_transfer.models.head import read_logits
from hf_transfer.models.layers import layer_map
from hf_transfer.resume.states import States
from hf_transfer.training.callbacks import BestStep
from tests import checkpoints
from tests.architectures.conftest import OLD_LABELS, Subject
from tests.architectures.first_use import FirstUse

LABELS = ("x", "y", "z")

# Perceiver's decoder is part of its task; PP-LCNet has no base model.
WITHOUT_BASE = ("perceiver", "pp_lcnet")

# In 64 bits the merged MobileNets differ by 4e-14; in 32 bits their 26 and 52 BatchNorms amplify what rounding leaves.
ROUNDING = {"mobilenet_v1": 5e-5, "mobilenet_v2": 5e-5}


def _load(subject: Subject) -> Checkpoint:
    return checkpoints.load(str(subject.folder), subject.task, LABELS)


def _logits(model: torch.nn.Module, subject: Subject) -> torch.Tensor:
    model.eval()
    set_seed(0)  # Reformer and Yoso hash at random
    with torch.no_grad():
        return read_logits(model(**subject.inputs))


def _step(model: torch.nn.Module, subject: Subject, steps: int = 1) -> None:
    """Train what requires gradients for some steps, with weight decay."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1
    )
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        logits = read_logits(model(**subject.inputs)).flatten(0, -2)
        F.cross_entropy(logits, torch.arange(len(logits)) % len(LABELS)).backward()
        optimizer.step()


def test_all_other_tensors_equal_the_checkpoints(subject: Subject) -> None:
    checkpoint = _load(subject)
    source = subject.task.model_class.from_pretrained(subject.folder)
    old, new = source.state_dict(), checkpoint.model.state_dict()
    assert checkpoint.new_parameters
    assert {name for name in new if new[name].shape != old[name].shape} == set(
        checkpoint.new_parameters
    )
    for name, tensor in new.items():
        assert name in checkpoint.new_parameters or torch.equal(tensor, old[name]), name


def test_a_head_for_as_many_other_labels_is_new(subject: Subject) -> None:
    model = subject.task.model_class.from_pretrained(subject.folder)
    checkpoint = checkpoints.load(
        str(subject.folder), subject.task, [f"new {n}" for n in range(len(OLD_LABELS))]
    )
    old = model.state_dict()
    weights = [name for name in checkpoint.new_parameters if name.endswith("weight")]
    assert weights
    assert not any(torch.equal(checkpoint.model.get_parameter(name), old[name]) for name in weights)
    assert all(
        torch.equal(t, old[n])
        for n, t in checkpoint.model.state_dict().items()
        if n not in checkpoint.head
    )


def test_stages_cover_every_parameter_in_the_order_of_execution(subject: Subject) -> None:
    checkpoint = _load(subject)
    model = checkpoint.model.eval()
    stages = layer_map(model, checkpoint.head)
    names = Counter(name for name, _ in model.named_parameters())
    assert set(names) == set(stages.depths)
    assert {stages.depth_of(name) for name in checkpoint.head} == {stages.head}
    assert len(stages.stages) > 2
    twice = {name for name, p in model.named_parameters() if _uses(model, p) > 1}
    with torch.no_grad(), FirstUse(model) as run:
        model(**subject.inputs)
    depths = [stages.depth_of(name) for name in run.order if name not in twice]
    assert depths == sorted(depths)
    assert len(depths) > 3


def _uses(model: torch.nn.Module, parameter: torch.nn.Parameter) -> int:
    return sum(p is parameter for _, p in model.named_parameters(remove_duplicate=False))


def test_with_the_body_frozen_a_step_changes_the_head_and_nothing_else(subject: Subject) -> None:
    checkpoint = _load(subject)
    model = checkpoint.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with training_only(model, checkpoint.head):
        _step(model, subject)
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == set(checkpoint.head)


def test_split_at_its_head_its_parts_give_what_the_whole_gives(
    subject: Subject, record_property: Callable[[str, object], None]
) -> None:
    model = _load(subject).model.eval()
    record_property("the head", _require_equal_or_refused(model, "head", subject))


def test_split_at_a_middle_stage_its_parts_give_what_the_whole_gives(
    subject: Subject, record_property: Callable[[str, object], None]
) -> None:
    checkpoint = _load(subject)
    model = checkpoint.model.eval()
    middle = len(layer_map(model, checkpoint.head).stages) // 2
    record_property("a middle stage", _require_equal_or_refused(model, middle, subject))


def _require_equal_or_refused(
    model: torch.nn.Module, boundary: Boundary, subject: Subject
) -> str | None:
    """Why the model is run whole; None if its parts are equal to it, on other rows than those it was checked on too."""
    set_seed(0)
    with torch.no_grad():  # some as they are first made answer 0 to everything
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    try:
        split = split_model(model, boundary)
        split.prefix(subject.inputs)
    except UnsplittableError as reason:
        return str(reason)
    inputs = {name: tensor.flip(0) for name, tensor in subject.inputs.items()}
    with torch.no_grad():
        set_seed(0)
        expected = read_logits(model(**inputs))
        set_seed(0)
        again = split.suffix(split.prefix(inputs))
    assert torch.allclose(again, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(expected[0], expected[-1])
    return None


def test_saved_and_loaded_again_it_gives_the_same_logits(subject: Subject, tmp_path: Path) -> None:
    checkpoint = _load(subject)
    checkpoint.model.save_pretrained(tmp_path)
    loaded = subject.task.model_class.from_pretrained(tmp_path)
    assert list(loaded.config.id2label.values()) == list(LABELS)
    saved = checkpoint.model.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())
    assert torch.allclose(_logits(loaded, subject), _logits(checkpoint.model, subject), atol=1e-6)


def test_its_state_and_its_best_step_come_back_whole(subject: Subject, tmp_path: Path) -> None:
    model = _load(subject).model
    _step(model, subject)
    best = BestStep(model, "loss", patience=None)
    best.on_evaluate(None, SimpleNamespace(global_step=1), None, {"eval_loss": 1.0})
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = States(tmp_path)
    states.write("step-1", {"weights": model.state_dict(), "best": best.state_dict()}, {})
    states.wait()
    state = States(tmp_path).newest()
    assert state is not None
    again = _load(subject).model
    _step(again, subject)
    again.load_state_dict(state.load("weights"), strict=True)
    _require_equal(again, kept)
    _step(again, subject)
    resumed = BestStep(again, "loss", patience=None)
    resumed.load_state_dict(state.load("best"))
    resumed.on_train_end(None, SimpleNamespace(global_step=2), None)
    _require_equal(again, kept)


def _require_equal(model: torch.nn.Module, kept: dict[str, torch.Tensor]) -> None:
    now = model.state_dict()
    assert now.keys() == kept.keys()
    assert [name for name in kept if not torch.equal(now[name], kept[name])] == []


def test_a_merged_adapter_loads_as_a_plain_model_with_the_same_logits(
    subject: Subject, tmp_path: Path
) -> None:
    checkpoint = _load(subject)
    fresh = _logits(checkpoint.model, subject)
    wrapped = wrap_with_adapter(checkpoint.model, checkpoint.head, "lora", rank=4)
    _step(wrapped, subject, steps=2)  # lora_B starts at zero: lora_A learns from the second step on
    expected = _logits(wrapped, subject)
    merge(wrapped).save_pretrained(tmp_path)
    loaded = subject.task.model_class.from_pretrained(tmp_path)
    assert not torch.allclose(expected, fresh, atol=1e-4)
    assert torch.allclose(
        _logits(loaded, subject),
        expected,
        rtol=0,
        atol=ROUNDING.get(loaded.config.model_type, 1e-5),
    )


def test_to_a_base_model_a_head_is_added_and_nothing_else(subject: Subject, tmp_path: Path) -> None:
    if AutoConfig.from_pretrained(subject.folder).model_type in WITHOUT_BASE:
        pytest.skip("its classifier is not a base model and a head")
    AutoModel.from_pretrained(subject.folder).save_pretrained(tmp_path)
    checkpoint = checkpoints.load(str(tmp_path), subject.task, LABELS)
    prefix = f"{checkpoint.model.base_model_prefix}."
    assert set(checkpoint.head) == set(checkpoint.new_parameters)
    assert all(
        name.startswith(f"{prefix}pooler.") for name in checkpoint.head if name.startswith(prefix)
    )
    base, compared = AutoModel.from_pretrained(tmp_path).state_dict(), 0
    for name, tensor in checkpoint.model.state_dict().items():
        if name.removeprefix(prefix) in base and name not in checkpoint.new_parameters:
            assert torch.equal(tensor, base[name.removeprefix(prefix)]), name
            compared += 1
    assert compared > 3
