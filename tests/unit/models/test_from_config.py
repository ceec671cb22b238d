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
            "is not a JSON object",
        ),
    ],
)
def test_a_source_model_that_cannot_be_built_is_said_in_one_line(
    config: SourceModelConfig, task: Task, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_checkpoint(config, task, LABELS, seed=0)


def test_an_unknown_model_type_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError) as refusal:
        build_checkpoint(SourceModelConfig(model_type="resnett"), IMAGES, LABELS, seed=0)
    assert "did you mean 'resnet'" in refusal.value.hint
