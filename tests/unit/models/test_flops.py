from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    ResNetConfig,
    ViTConfig,
)

from hf_transfer.models.flops import stage_flops
from hf_transfer.models.layers import LayerMap, layer_map

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
ROWS, TOKENS = 2, 10
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SMALL, vocab_size=60),
    "gpt2": GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=60, pad_token_id=0),
    "vit": ViTConfig(**SMALL, image_size=16, patch_size=4),
    "resnet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1], layer_type="basic"
    ),
}


def _model(config: PreTrainedConfig) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model in eval mode and a batch for it."""
    if hasattr(config, "vocab_size"):
        inputs = {"input_ids": torch.ones(ROWS, TOKENS, dtype=torch.long)}
        return AutoModelForSequenceClassification.from_config(config).eval(), inputs
    return AutoModelForImageClassification.from_config(config).eval(), {
        "pixel_values": torch.ones(ROWS, 3, 16, 16)
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_the_operations_of_all_stages_are_those_of_the_network(name: str) -> None:
    model, inputs = _model(CONFIGS[name])
    found = stage_flops(model, inputs, layer_map(model))
    counter = FlopCounterMode(display=False)
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        counter,
    ):
        model(**inputs)
    assert len(found) == 5
    assert sum(found) == counter.get_total_flops() > 0


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_layers_of_one_shape_take_as_much(name: str) -> None:
    model, inputs = _model(CONFIGS[name])
    _, first, second, third, head = stage_flops(model, inputs, layer_map(model))
    assert first == second == third > head > 0


def test_the_products_of_an_encoder_are_counted_by_hand() -> None:
    model, inputs = _model(CONFIGS["bert"])
    embeddings, *layers, head = stage_flops(model, inputs, layer_map(model))
    attention = 4 * 16 * 16 + 2 * TOKENS * 16  # four projections; scores and what they mix
    layer = 2 * ROWS * TOKENS * (attention + 2 * 16 * 32)
    pooler = 2 * ROWS * 16 * 16  # it runs behind the last layer
    assert embeddings == 0
    assert layers == [layer, layer, layer + pooler]
    assert head == 2 * ROWS * 16 * 2


def test_the_convolutions_before_the_layers_are_of_the_embeddings() -> None:
    model, inputs = _model(CONFIGS["vit"])
    assert stage_flops(model, inputs, layer_map(model))[0] == 2 * ROWS * 16 * (3 * 4 * 4) * 16


def test_a_layer_that_runs_three_times_counts_three_times() -> None:
    config = AlbertConfig(**SMALL, embedding_size=16, vocab_size=60)
    model, inputs = _model(config)
    thrice = sum(stage_flops(model, inputs, layer_map(model))[1:-1])
    model.albert.encoder.config.num_hidden_layers = 1
    assert thrice > 2.5 * sum(stage_flops(model, inputs, layer_map(model))[1:-1])


class _Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.classes = nn.Embedding(7, 3), nn.Embedding(7, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """A table for all."""
        return self.classes(ids) + self.words(ids).sum()


def test_a_network_without_products_is_measured_by_its_parameters() -> None:
    layers = LayerMap(("embeddings", "head"), {"words.weight": 0, "classes.weight": 1})
    assert stage_flops(_Lookup(), {"ids": torch.zeros(1, dtype=torch.long)}, layers) == (21, 14)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = _model(CONFIGS["resnet"])
    stage_flops(model, inputs, layer_map(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
