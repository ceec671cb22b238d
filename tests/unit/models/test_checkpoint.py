import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    ViTForImageClassification,
)

from hf_transfer.config.model import ModelConfig
from hf_transfer.data.sources import Data, Origin
from hf_transfer.errors import UserError
from hf_transfer.models.checkpoint import load_checkpoint, randomized
from hf_transfer.tasks import find_task
from tests import checkpoints

IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")
LABELS = ("x", "y", "z")


def _copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet"])
def test_only_the_head_is_new_and_all_else_equals_the_checkpoint(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    checkpoint = checkpoints.load(str(folder), IMAGES, LABELS)
    assert checkpoint.new_parameters
    assert all("classifier" in name for name in checkpoint.new_parameters)
    source = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    for name, tensor in checkpoint.model.state_dict().items():
        if name not in checkpoint.new_parameters:
            assert torch.equal(tensor, source[name]), name


def test_a_head_of_the_same_size_is_new_too(tiny_vit: Path) -> None:
    checkpoint = checkpoints.load(str(tiny_vit), IMAGES, [f"other {n}" for n in range(7)])
    old = AutoModelForImageClassification.from_pretrained(tiny_vit).state_dict()
    assert checkpoint.new_parameters == ("classifier.weight", "classifier.bias")
    assert not torch.equal(checkpoint.model.classifier.weight, old["classifier.weight"])
    assert checkpoint.model.classifier.weight.std() > 0


def test_the_new_head_is_the_same_for_the_same_seed(tiny_vit: Path) -> None:
    first, second, third = (
        checkpoints.load(str(tiny_vit), IMAGES, LABELS, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, third.model.classifier.weight)


def test_label_names_and_order_are_in_the_config(tiny_bert: Path) -> None:
    labels = [f"label {n}" for n in range(12)]
    config = checkpoints.load(str(tiny_bert), TEXTS, labels).model.config
    assert list(config.id2label.values()) == labels
    assert config.label2id["label 10"] == 10
    assert config.problem_type == "single_label_classification"


def test_a_checkpoint_without_any_head_gets_one(tiny_bert: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    assert checkpoints.load(str(tmp_path), TEXTS, LABELS).new_parameters == (
        "classifier.weight",
        "classifier.bias",
    )


def test_a_pooler_that_the_checkpoint_lacks_is_part_of_the_head(
    tiny_bert: Path, tmp_path: Path
) -> None:
    folder = _copy(tiny_bert, tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: t for n, t in weights.items() if "pooler" not in n},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert any(
        "pooler" in name for name in checkpoints.load(str(folder), TEXTS, LABELS).new_parameters
    )


@pytest.mark.parametrize("lost", ["encoder.layer.1.", "embeddings.", "encoder."])
def test_a_missing_layer_is_an_error_that_names_its_parameters(
    tiny_bert: Path, tmp_path: Path, lost: str
) -> None:
    folder = _copy(tiny_bert, tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: t for n, t in weights.items() if lost not in n},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=re.escape(lost)):
        checkpoints.load(str(folder), TEXTS, LABELS)


@pytest.mark.parametrize(
    ("model", "lost"),
    [
        ("tiny_resnet", "running_mean"),
        ("tiny_resnet", "encoder"),
        ("tiny_vit", "vit.layernorm"),
        ("tiny_vit", "layer"),
    ],
)
def test_whatever_else_of_the_body_is_missing_is_an_error(
    model: str, lost: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = _copy(request.getfixturevalue(model), tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in weights.items() if lost not in n}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ of the tensors below the head"):
        checkpoints.load(str(folder), IMAGES, LABELS)


def test_a_truncated_file_is_an_error_in_one_line(tiny_bert: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_bert, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot load the weights"):
        checkpoints.load(str(folder), TEXTS, LABELS)


def test_from_scratch_transfers_nothing(tiny_vit: Path) -> None:
    checkpoint = checkpoints.load(str(tiny_vit), IMAGES, LABELS)
    fresh = randomized(checkpoint, seed=0)
    assert fresh.model is not checkpoint.model
    assert len(fresh.new_parameters) == len(list(fresh.model.parameters()))
    assert fresh.processor is checkpoint.processor


def test_a_thousand_labels_keep_their_names_and_order(tiny_vit: Path, tmp_path: Path) -> None:
    labels = [f"class {number}" for number in reversed(range(1000))]
    checkpoints.load(str(tiny_vit), IMAGES, labels).model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert [config.id2label[number] for number in range(1000)] == labels
    assert config.label2id["class 10"] == 989


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("x",), "one label only: 'x'"),
        ((), "one label only: none"),
        (("x", "y", "x"), "the label 'x' is named twice"),
    ],
)
def test_labels_that_make_no_classifier_are_refused(
    labels: tuple[str, ...], message: str, tiny_vit: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        checkpoints.load(str(tiny_vit), IMAGES, labels)


def test_a_regression_has_one_output(tiny_bert: Path) -> None:
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, ("stars",), problem_type="regression")
    assert checkpoint.model.config.problem_type == "regression"
    assert checkpoint.model.config.num_labels == 1
    with pytest.raises(UserError, match="a regression has one output, not 3"):
        checkpoints.load(str(tiny_bert), TEXTS, LABELS, problem_type="regression")


def test_a_base_model_has_no_head_to_keep(tiny_bert: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="brings no head, new: classifier"):
        checkpoints.load(str(tmp_path), TEXTS, [f"LABEL_{n}" for n in range(4)], keep_head=True)


def test_a_model_folder_without_a_processor_can_be_studied(tiny_vit: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_vit, tmp_path)
    (folder / "preprocessor_config.json").unlink()
    checkpoint = checkpoints.load(str(folder), IMAGES, LABELS)
    assert checkpoint.new_parameters
    with pytest.raises(UserError, match="has no processor"):
        _ = checkpoint.processor


def test_what_is_read_from_the_model_is_read_once_and_anew_for_another_checkpoint(
    tiny_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.load(str(tiny_vit), IMAGES, LABELS)
    built: list[object] = []
    build = type(checkpoint.model)._from_config
    monkeypatch.setattr(
        type(checkpoint.model), "_from_config", lambda config: built.append(config) or build(config)
    )
    assert checkpoint.layers is checkpoint.layers
    assert checkpoint.layers.stages[checkpoint.layers.head] == "head"
    assert checkpoint.layers.num_layers == len(checkpoint.layers.stages) - 2
    assert checkpoint.output_layer == {"classifier.weight", "classifier.bias"}
    assert [checkpoint.linear_head, checkpoint.linear_head] == ["classifier", "classifier"]
    assert len(built) == 1
    other = replace(checkpoint, head=("classifier.bias",))
    assert other.layers.depth_of("classifier.weight") == other.layers.num_layers
    assert checkpoint.layers.depth_of("classifier.weight") == checkpoint.layers.head


def test_classes_can_be_given_in_place_of_the_tasks(tiny_vit: Path) -> None:
    class Model(ViTForImageClassification):
        pass

    class Processor:
        @classmethod
        def from_pretrained(cls, *_: object, **__: object) -> "Processor":
            return cls()

    data = Data({}, LABELS, Origin("made"), "", IMAGES)
    checkpoint = load_checkpoint(ModelConfig(str(tiny_vit)), data, 0, Model, Processor)
    assert type(checkpoint.model) is Model
    assert checkpoint.new_parameters == ("classifier.weight", "classifier.bias")
    assert isinstance(checkpoint.processor, Processor)
    assert checkpoint.processor is checkpoint.processor
