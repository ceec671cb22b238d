import json
import re

import pytest

from hf_transfer.config.source_model import SourceModelConfig
from hf_transfer.errors import UserError
from hf_transfer.models.from_config import build_checkpoint
from hf_transfer.tasks import Task, find_task

IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")
LABELS = ("x", "y", "z")


def test_a_source_model_is_built_from_its_config() -> None:
    config = SourceModelConfig(
        model_type="resnet",
        config_overrides='{"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}',
        processor_overrides='{"size": {"height": 24, "width": 24}}',
    )
    checkpoint = build_checkpoint(config, IMAGES, LABELS, seed=0)
    assert checkpoint.model.config.num_labels == 3
    assert checkpoint.processor.size["height"] == 24


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        (
            SourceModelConfig(model_type="bert", tokenizer_name="./nowhere"),
            TEXTS,
            "'./nowhere' has no processor",
        ),
        (SourceModelConfig(model_type="bert"), TEXTS, "--tokenizer_name is missing"),
        (
            SourceModelConfig(
                model_type="vit", processor_overrides='{"image_processor_type": "Nothing"}'
            ),
            IMAGES,
            "no image processor 'Nothing'",
        ),
        (
            SourceModelConfig(model_type="vit", config_overrides="depth=2"),
            IMAGES,
            "--config_overrides 'depth=2' is not a JSON object",
        ),
        *(
            (SourceModelConfig(model_type="resnet", config_overrides=text), IMAGES, message)
            for text, message in (
                ("[1]", "--config_overrides '[1]' is not a JSON object"),
                ("3", "--config_overrides '3' is not a JSON object"),
                ('{"depths": 3}', "gives no resnet network: Validation error for field 'depths'"),
                ('{"depth": [1]}', "unknown key of the config of resnet 'depth'"),
                ('{"hidden_act": "none"}', "gives no resnet network: unknown 'none'"),
                ('{"hidden_sizes": [-8], "depths": [1]}', "gives no resnet network: "),
            )
        ),
        *(
            (SourceModelConfig(model_type="vit", processor_overrides=text), IMAGES, message)
            for text, message in (
                ("[1]", "--processor_overrides '[1]' is not a JSON object"),
                ('{"size": "large"}', "gives no processor: Could not convert size"),
                ('{"image_processor_type": 3}', "no image processor 3"),
            )
        ),
        (SourceModelConfig(model_type="bert"), IMAGES, "was pretrained on text"),
    ],
)
def test_a_source_model_that_cannot_be_built_is_said_in_one_line(
    config: SourceModelConfig, task: Task, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_checkpoint(config, task, LABELS, seed=0)


def test_a_processor_has_the_image_size_of_the_network() -> None:
    config = SourceModelConfig(
        model_type="vit",
        config_overrides='{"image_size": [16, 32], "patch_size": 8, "hidden_size": 8, '
        '"num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}',
    )
    size = build_checkpoint(config, IMAGES, LABELS, seed=0).processor.size
    assert (size["height"], size["width"]) == (16, 32)


def test_a_task_may_be_given_by_its_name() -> None:
    config = SourceModelConfig(
        model_type="resnet",
        config_overrides='{"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}',
    )
    assert build_checkpoint(config, "image-classification", LABELS, seed=0).task == IMAGES


def test_an_unknown_model_type_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError) as refusal:
        build_checkpoint(SourceModelConfig(model_type="resnett"), IMAGES, LABELS, seed=0)
    assert "did you mean 'resnet'" in refusal.value.hint


@pytest.mark.parametrize(
    ("model_type", "overrides", "kind"),
    [
        ("wav2vec2", {}, "Wav2Vec2FeatureExtractor"),
        (
            "audio-spectrogram-transformer",
            {"max_length": 64, "num_mel_bins": 32},
            "ASTFeatureExtractor",
        ),
    ],
)
def test_a_network_of_sounds_has_the_extractor_of_its_type(
    model_type: str, overrides: dict[str, int], kind: str
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **overrides}
    config = SourceModelConfig(model_type, config_overrides=json.dumps(sizes))
    task = find_task("audio-classification")
    extractor = build_checkpoint(config, task, LABELS, seed=0).processor
    assert type(extractor).__name__ == kind
    assert {name: getattr(extractor, name) for name in overrides} == overrides
