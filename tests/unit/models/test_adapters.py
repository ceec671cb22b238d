from pathlib import Path

import pytest
import torch

from hf_transfer.models.adapters import merge, wrap_with_adapter
from hf_transfer.models.checkpoint import load_checkpoint
from hf_transfer.tasks import find_task


@pytest.mark.parametrize(("name", "task"), [("tiny_bert", "text"), ("tiny_vit", "image"), ("tiny_resnet", "image")])
def test_a_merged_adapter_gives_the_same_logits_in_a_plain_model(
    name: str, task: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    checkpoint = load_checkpoint(str(folder), find_task(f"{task}-classification"), ("a", "b"))
    plain_class = type(checkpoint.model)
    wrapped = wrap_with_adapter(checkpoint.model, checkpoint.head, "lora", rank=4)
    inputs = (
        {"input_ids": torch.randint(5, 17, (6, 7))} if task == "text" else {"pixel_values": torch.randn(6, 3, 16, 16)}
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
