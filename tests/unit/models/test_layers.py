from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    CLIPConfig,
    GPT2Config,
    ModernVBertConfig,
    ResNetConfig,
    RobertaConfig,
)

from hf_transfer import layer_map
from hf_transfer.models.layers import find_head

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
}


def _text_model(config: Any) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def _image_model(config: Any) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForImageClassification.from_config(config)


def test_the_layers_of_an_encoder_are_between_its_embeddings_and_its_head() -> None:
    stages = layer_map(_text_model(BertConfig(**SMALL)))
    assert stages.stages == ("embeddings", "layer 1", "layer 2", "layer 3", "head")
    assert stages.depth_of("bert.embeddings.word_embeddings.weight") == 0
    assert stages.depth_of("bert.encoder.layer.1.output.dense.weight") == 2
    assert stages.depth_of("bert.pooler.dense.weight") == 3  # it runs behind the last layer
    assert stages.depth_of("classifier.weight") == 4


def test_a_decoders_final_norm_belongs_to_its_last_layer_and_its_score_is_the_head() -> None:
    stages = layer_map(_text_model(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60)))
    assert stages.depth_of("transformer.wpe.weight") == 0
    assert stages.depth_of("transformer.ln_f.weight") == 2
    assert stages.depth_of("score.weight") == 3


def test_the_stages_of_a_convolutional_network_are_its_layers() -> None:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1], layer_type="basic"
    )
    stages = layer_map(_image_model(config))
    assert len(stages.stages) == 5
    assert stages.depth_of("resnet.embedder.embedder.convolution.weight") == 0
    assert stages.depth_of("resnet.encoder.stages.1.layers.1.layer.0.convolution.weight") == 2


def test_an_encoder_runs_before_its_decoder() -> None:
    sizes = {"encoder_layers": 2, "decoder_layers": 3, "d_model": 16, "encoder_attention_heads": 2}
    model = _text_model(BartConfig(**sizes, decoder_attention_heads=2, vocab_size=60))
    stages = layer_map(model)
    assert len(stages.stages) == 7
    assert stages.depth_of("model.shared.weight") == 0
    assert (
        stages.depth_of("model.encoder.layernorm_embedding.weight") == 0
    )  # registered behind the layers
    assert stages.depth_of("model.encoder.layers.1.fc1.weight") == 2
    assert stages.depth_of("model.decoder.embed_positions.weight") == 2
    assert stages.depth_of("model.decoder.layers.0.fc1.weight") == 3


def test_a_clip_tower_for_pictures_has_its_own_layers_alone() -> None:
    vision = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {
        "image_size": 16,
        "patch_size": 8,
    }
    model = _image_model(CLIPConfig(vision_config=vision, text_config=SMALL))
    assert len(layer_map(model).stages) == 5
    assert find_head(model) == {"classifier.weight", "classifier.bias"}


def test_a_tower_that_texts_do_not_pass_goes_with_the_embeddings() -> None:
    vision = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {
        "image_size": 32,
        "patch_size": 8,
    }
    model = _text_model(
        ModernVBertConfig(text_config=SMALL | {"pad_token_id": 0}, vision_config=vision)
    )
    stages = layer_map(model)
    tower = [name for name, _ in model.named_parameters() if "vision_model" in name]
    assert len(tower) > 20
    assert {stages.depth_of(name) for name in tower} == {0}
    assert len(stages.stages) == 5


def test_the_head_is_what_is_named_or_else_all_outside_the_base_model() -> None:
    model = _text_model(RobertaConfig(**SMALL))
    assert layer_map(model).depth_of("classifier.dense.weight") == 4
    named = layer_map(model, ("classifier.out_proj.weight", "classifier.out_proj.bias"))
    assert named.depth_of("classifier.dense.weight") == 3
    assert named.depth_of("classifier.out_proj.weight") == 4


class _Backwards(nn.Module):
    """Registers its parts in another order than it runs them."""

    base_model_prefix = "body"
    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.body = nn.Module()
        self.tail = nn.LayerNorm(4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(4))
        self.start = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As an encoder."""
        assert len(self.layers) == 2
        hidden = self._begin(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.tail(hidden))

    def _begin(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.start(inputs) * self.scale


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("start.weight", 0),
        ("scale", 0),
        ("layers.1.0.bias", 2),
        ("tail.weight", 2),
        ("head.bias", 3),
    ],
)
def test_what_counts_is_the_order_in_which_forward_runs(name: str, depth: int) -> None:
    assert layer_map(_Backwards(), ("head.weight", "head.bias")).depth_of(name) == depth


def test_every_parameter_has_one_stage() -> None:
    model = _text_model(BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=60))
    names = Counter(name for name, _ in model.named_parameters())
    assert set(layer_map(model).depths) == set(names)
