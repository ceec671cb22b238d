from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, DistilBertConfig

from hf_transfer.models.adapters import (
    adapter_rates,
    merge,
    read_adapter,
    save_adapter,
    wrap_with_adapter,
)
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.pooling import with_mean_pooling
from hf_transfer.tasks import find_task
from tests import checkpoints


@pytest.mark.parametrize(
    ("name", "task"), [("tiny_bert", "text"), ("tiny_vit", "image"), ("tiny_resnet", "image")]
)
def test_a_merged_adapter_gives_the_same_logits_in_a_plain_model(
    name: str, task: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    checkpoint = checkpoints.load(str(folder), find_task(f"{task}-classification"), ("a", "b"))
    plain_class = type(checkpoint.model)
    wrapped = wrap_with_adapter(checkpoint.model, checkpoint.head, "lora", rank=4)
    inputs = (
        {"input_ids": torch.randint(5, 17, (6, 7))}
        if task == "text"
        else {"pixel_values": torch.randn(6, 3, 16, 16)}
    )
    trainable = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in n for n in trainable)
    before = {n: p.detach().clone() for n, p in trainable.items()}
    wrapped.train()
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.05)
    for _ in range(2):  # lora_B starts at zero, so lora_A has no gradient in the first step
        optimizer.zero_grad()
        wrapped(**inputs, labels=torch.tensor([0, 1, 0, 1, 0, 1])).loss.backward()
        optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in trainable.items())
    wrapped.eval()
    expected = wrapped(**inputs).logits
    merged = merge(wrapped)
    assert type(merged) is plain_class
    assert torch.allclose(merged.eval()(**inputs).logits, expected, atol=1e-5)
    assert set(checkpoint.new_parameters) <= {n for n, _ in merged.named_parameters()}


def _pooled_distilbert(folder: Path) -> Checkpoint:
    config = DistilBertConfig(
        vocab_size=60,
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return with_mean_pooling(
        checkpoints.load(str(folder), find_task("text-classification"), ("a", "b"))
    )


def test_what_is_fixed_stays_plain_beside_a_head_whose_name_it_ends_with(tmp_path: Path) -> None:
    checkpoint = _pooled_distilbert(tmp_path / "plain")
    assert {"pre_classifier.weight", "pre_classifier.bias"} < set(checkpoint.fixed)
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    wrapped = wrap_with_adapter(checkpoint.model, checkpoint.head, "lora", 4, checkpoint.fixed)
    rates = adapter_rates(wrapped, {name: 0.05 for name in before if name not in checkpoint.fixed})
    assert set(rates) == {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or ".modules_to_save." in name for name in rates)
    assert not any("pre_classifier" in name or "layer.2" in name for name in rates)
    optimizer = torch.optim.AdamW(p for p in wrapped.parameters() if p.requires_grad)
    for _ in range(2):
        optimizer.zero_grad()
        wrapped.train()(
            input_ids=torch.randint(5, 60, (4, 7)), labels=torch.tensor([0, 1, 0, 1])
        ).loss.backward()
        optimizer.step()
    assert not any("pre_classifier" in name for name in read_adapter(wrapped).weights)
    merged = merge(wrapped)
    assert not any(type(module).__module__.startswith("peft") for module in merged.modules())
    after = merged.state_dict()
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert set(checkpoint.head) < changed
    assert not changed & set(checkpoint.fixed)


def test_an_adapter_of_a_model_that_reads_the_mean_is_loaded_by_transformers(
    tmp_path: Path,
) -> None:
    _pooled_distilbert(tmp_path / "plain").model.save_pretrained(tmp_path / "pooled")
    checkpoint = checkpoints.load(
        str(tmp_path / "pooled"), find_task("text-classification"), ("a", "b")
    )
    wrapped = wrap_with_adapter(checkpoint.model, checkpoint.head, "lora", 4, checkpoint.fixed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapter, merged = read_adapter(wrapped), merge(wrapped).eval()
    base = (str(tmp_path / "pooled"), None)
    save_adapter(adapter, merged, checkpoint.head, base, tmp_path / "adapter")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pooled")
    again = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload()
    ids = torch.randint(5, 60, (4, 7))
    with torch.no_grad():
        torch.testing.assert_close(
            again.eval()(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-5
        )
