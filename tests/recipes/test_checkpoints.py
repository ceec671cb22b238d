"""Any checkpoint, any head: what a recipe makes of the checkpoint that it is given."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Wav2Vec2Config,
    pipeline,
)

from hf_transfer.inference import answers, load_finished
from hf_transfer.record import read_record
from tests.conftest import Outcome

Recipe = Callable[..., Outcome]
Broken = Callable[[str], Path]

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
SHORT = ("--strategy", "head", "--max_steps", "2", "--use_cpu", "--disable_tqdm", "true")


@pytest.fixture
def months(tmp_path: Path) -> Path:
    """A dataset of twelve labels whose order is neither that of the alphabet nor that of the rows."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=MONTHS)})
    rows = [
        {"text": f"{month} the cat runs", "label": month}
        for month in reversed(MONTHS)
        for _ in range(8)
    ]
    DatasetDict({"train": Dataset.from_list(rows, features=features)}).save_to_disk(
        tmp_path / "months"
    )
    return tmp_path / "months"


def test_twelve_labels_keep_the_datasets_names_and_order(
    recipe: Recipe, tiny_bert: Path, months: Path, tmp_path: Path
) -> None:
    ended = recipe(
        "text_classification",
        *(
            "--model_name_or_path",
            tiny_bert,
            "--dataset_name",
            months,
            "--output_dir",
            tmp_path / "run",
            *SHORT,
        ),
    )
    assert ended.code == 0, ended.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert [model.config.id2label[number] for number in range(12)] == MONTHS
    assert model.config.label2id["Dec"] == 11
    logits = model(
        **AutoTokenizer.from_pretrained(tmp_path / "run")("the cat", return_tensors="pt")
    ).logits[0]
    answers = pipeline("text-classification", model=str(tmp_path / "run"))("the cat", top_k=12)
    assert [answer["label"] for answer in answers] == [
        MONTHS[number] for number in logits.argsort(descending=True)
    ]


def test_a_head_for_as_many_labels_of_other_names_is_new(
    recipe: Recipe, tiny_vit: Path, tmp_path: Path
) -> None:
    digits = ("--dataset_name", "builtin:digits", "--examples_per_class", "1", *SHORT)
    first, second = tmp_path / "letters", tmp_path / "digits"
    shutil.copytree(tiny_vit, first)
    model = AutoModelForImageClassification.from_pretrained(
        tiny_vit, num_labels=10, ignore_mismatched_sizes=True
    )
    model.classifier.weight.data.fill_(5)
    model.save_pretrained(first)
    ended = recipe(
        "image_classification", "--model_name_or_path", first, *digits, "--output_dir", second
    )
    assert ended.code == 0, ended.err
    assert read_record(second / "record.json").model.new_parameters == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert "new: classifier" in ended.err
    assert "dropped: classifier" in ended.err
    assert not (
        AutoModelForImageClassification.from_pretrained(second).classifier.weight == 5
    ).any()


def test_ones_own_model_goes_on_with_its_head(
    recipe: Recipe, tiny_vit: Path, tmp_path: Path
) -> None:
    digits = ("--dataset_name", "builtin:digits", "--examples_per_class", "1", *SHORT)
    assert (
        recipe(
            "image_classification",
            "--model_name_or_path",
            tiny_vit,
            *digits,
            "--output_dir",
            tmp_path / "a",
        ).code
        == 0
    )
    again = (
        "--model_name_or_path",
        tmp_path / "a",
        *digits,
        "--keep_head",
        "--learning_rate",
        "1e-9",
    )
    ended = recipe("image_classification", *again, "--output_dir", tmp_path / "b")
    assert ended.code == 0, ended.err
    before, after = (
        AutoModelForImageClassification.from_pretrained(tmp_path / name) for name in "ab"
    )
    assert read_record(tmp_path / "b" / "record.json").model.new_parameters == []
    assert torch.allclose(after.classifier.weight, before.classifier.weight, atol=1e-6)


def test_a_kept_head_of_other_labels_is_refused(
    recipe: Recipe, tiny_vit: Path, tmp_path: Path
) -> None:
    digits = ("--dataset_name", "builtin:digits", "--examples_per_class", "1", *SHORT)
    ended = recipe(
        "image_classification",
        "--model_name_or_path",
        tiny_vit,
        *digits,
        "--keep_head",
        "--output_dir",
        tmp_path / "a",
    )
    assert ended.code == 2
    assert "--keep_head: the labels of" in ended.err
    assert "'LABEL_0' in place of '0'" in ended.err


@pytest.mark.parametrize("model", ["tiny_vit", "tiny_resnet"])
def test_a_kept_adapter_loads_again_with_its_head(
    model: str, recipe: Recipe, request: pytest.FixtureRequest, picture_folder: Path, tmp_path: Path
) -> None:
    base, folder = request.getfixturevalue(model), tmp_path / "run"
    flags = (
        "--model_name_or_path",
        base,
        "--dataset_name",
        picture_folder,
        "--strategy",
        "lora",
        "--use_cpu",
    )
    ended = recipe(
        "image_classification",
        *flags,
        "--keep_adapter",
        "--learning_rate",
        "1e-2",
        "--output_dir",
        folder,
    )
    assert ended.code == 0, ended.err
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    record = read_record(folder / "record.json")
    assert record.model.adapter == "lora"
    assert record.metrics["accuracy"].value == 1.0
    merged = tmp_path / "merged"
    assert (
        recipe(
            "image_classification", *flags, "--learning_rate", "1e-2", "--output_dir", merged
        ).code
        == 0
    )
    labels = dict(enumerate(record.dataset.labels))
    loaded = AutoModelForImageClassification.from_pretrained(
        base, id2label=labels, ignore_mismatched_sizes=True
    )
    loaded = PeftModel.from_pretrained(loaded, str(folder))
    plain = AutoModelForImageClassification.from_pretrained(merged)
    image = Image.open(next((picture_folder / "dark").iterdir()))
    ((label, _),) = next(answers(load_finished(str(folder)), [{"image": image}]))
    assert label == "dark"
    pixels = torch.randn(3, 3, 16, 16)
    assert torch.allclose(
        loaded.eval()(pixels).logits, plain.eval()(pixels).logits, rtol=1e-3, atol=1e-5
    )


@pytest.fixture
def broken(tmp_path: Path, tiny_vit: Path) -> Broken:
    """A function that makes a checkpoint folder with a fault of a kind."""

    def make(fault: str) -> Path:
        folder = tmp_path / "checkpoints" / fault
        shutil.copytree(tiny_vit, folder)
        weights = folder / "model.safetensors"
        if fault == "no-config":
            (folder / "config.json").unlink()
        elif fault == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif fault == "no-layer":
            kept = {
                name: tensor
                for name, tensor in load_file(weights).items()
                if "layer.1." not in name
            }
            assert len(kept) < len(load_file(weights))
            save_file(kept, weights, {"format": "pt"})
        elif fault == "detector":
            (folder / "config.json").write_text(json.dumps({"model_type": "yolos"}))
        elif fault == "adapter":
            (folder / "adapter_config.json").write_text(
                json.dumps({"base_model_name_or_path": str(tiny_vit)})
            )
        elif fault == "sound":
            weights.unlink()
            Wav2Vec2Config().save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no-config", "has no config.json"),
        ("truncated", "cannot load the weights"),
        ("no-layer", "lacks 16 of the tensors below the head: vit.layers.1."),
        (
            "detector",
            "(yolos) has no class for image-classification, it has AutoModelForObjectDetection",
        ),
        ("adapter", "is an adapter, not a complete model"),
        ("sound", "(wav2vec2) was pretrained on audio, image-classification needs image"),
    ],
)
def test_a_checkpoint_that_does_not_serve_is_said_in_one_line(
    fault: str, message: str, recipe: Recipe, broken: Broken, tmp_path: Path
) -> None:
    ended = recipe(
        "image_classification",
        *("--model_name_or_path", broken(fault), "--dataset_name", "builtin:digits"),
        *("--output_dir", tmp_path / "run", *SHORT),
    )
    _require_refusal(ended, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strategy", "lora", "--lora_rank", "0"], "--lora_rank 0 is too small"),
        (["--strategy", "lorra"], "unknown --strategy 'lorra'"),
        (
            ["--strategy", "lora", "--peft_method", "lohaa"],
            "unknown value of --peft_method 'lohaa'",
        ),
        (
            ["--strategy", "lora", "--peft_method", "lily"],
            "--peft_method lily is not offered: it cannot be merged",
        ),
        (
            ["--strategy", "lora", "--peft_method", "ia3", "--lora_rank", "64"],
            "--peft_method ia3 has no rank",
        ),
        (
            ["--strategy", "lora", "--peft_method", "gralora", "--lora_rank", "3"],
            "does not take --lora_rank 3",
        ),
        (
            ["--strategy", "lora", "--peft_method", "vera", "--keep_adapter"],
            "does not go with --peft_method vera",
        ),
        (
            ["--strategy", "lora", "--peft_method", "c3a"],
            "--peft_method c3a does not fit ViTForImageClassification",
        ),
        (
            ["--strategy", "full", "--peft_method", "loha"],
            "--peft_method does not belong to --strategy full",
        ),
        (
            ["--strategy", "full", "--keep_adapter"],
            "--keep_adapter does not belong to --strategy full",
        ),
        (
            ["--strategy", "scratch", "--keep_head"],
            "--keep_head does not belong to --strategy scratch",
        ),
    ],
)
def test_a_transfer_that_cannot_be_is_said_in_one_line(
    flags: list[str], message: str, recipe: Recipe, tiny_vit: Path, tmp_path: Path
) -> None:
    ended = recipe(
        "image_classification",
        *("--model_name_or_path", tiny_vit, "--dataset_name", "builtin:digits"),
        *("--output_dir", tmp_path / "run", "--use_cpu", *flags),
    )
    _require_refusal(ended, message)


def test_two_labels_of_one_name_are_refused(
    recipe: Recipe, tiny_bert: Path, months: Path, tmp_path: Path
) -> None:
    path = months / "train" / "dataset_info.json"
    path.write_text(path.read_text().replace('"Dec"', '"Jan"'))
    ended = recipe(
        "text_classification",
        *(
            "--model_name_or_path",
            tiny_bert,
            "--dataset_name",
            months,
            "--output_dir",
            tmp_path / "run",
            *SHORT,
        ),
    )
    _require_refusal(ended, "label names are duplicated")


def _require_refusal(ended: Outcome, message: str) -> None:
    assert ended.code == 2, ended.err
    said = [
        line
        for line in ended.err.splitlines()
        if line.startswith(("error: ", "hint: ", "Traceback"))
    ]
    assert [line.split(":")[0] for line in said] == ["error", "hint"], ended.err
    assert message in said[0]


def test_an_adapter_is_not_written_over_its_own_base_model(
    recipe: Recipe, tiny_vit: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_vit, tmp_path / "base"))
    ended = recipe(
        "image_classification",
        *(
            "--model_name_or_path",
            base,
            "--dataset_name",
            "builtin:digits",
            "--strategy",
            "lora",
            "--keep_adapter",
        ),
        *("--output_dir", base, "--overwrite_output_dir", "--use_cpu"),
    )
    _require_refusal(ended, "holds the base model")
    assert (base / "model.safetensors").is_file()


def test_an_adapter_of_a_local_base_is_not_published_later(
    recipe: Recipe, tiny_vit: Path, tmp_path: Path
) -> None:
    flags = (
        "--model_name_or_path",
        tiny_vit,
        "--dataset_name",
        "builtin:digits",
        "--strategy",
        "lora",
        "--use_cpu",
    )
    folder = tmp_path / "run"
    ended = recipe(
        "image_classification", *flags, "--max_steps", "2", "--keep_adapter", "--output_dir", folder
    )
    assert ended.code == 0, ended.err
    ended = recipe("push_to_hub", "--output_dir", folder, "--hub_model_id", "me/adapter")
    _require_refusal(ended, "nobody can load an adapter of")
