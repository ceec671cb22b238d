"""Tiny models and datasets, made here, and a way to run a recipe as a user does."""

import csv
import logging
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
WORDS = ("red", "blue", "green", "cat", "dog", "bird", "runs", "sleeps", "sings", "the", "a", "is")


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A store of frozen computation for each test, in other processes too; never that of the user."""
    home = str(tmp_path_factory.mktemp("hf-home"))
    monkeypatch.setenv("HF_HOME", home)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", home)


@dataclass(frozen=True)
class Outcome:
    """How a program of ours ended: its exit code and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """A function that runs a recipe with flags, as `python recipes/NAME.py FLAGS` does, in this process."""

    def run(name: str, *flags: object) -> Outcome:
        path = ROOT / "recipes" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, flags)])
        code = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            # Its handler holds the stderr of this test.
            logging.getLogger("hf_transfer").handlers.clear()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures by class: 40 bright and 40 dark ones of 16 x 16."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, low in (("bright", 150), ("dark", 0)):
        (folder / name).mkdir()
        for number in range(40):
            pixels = rng.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of 240 texts of three classes, each told by one word."""
    path = tmp_path_factory.mktemp("texts") / "animals.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sentence", "animal"])
        for number in range(240):
            animal = ("cat", "dog", "bird")[number % 3]
            around = " ".join(rng.choice(WORDS[:3] + WORDS[6:], size=int(rng.integers(1, 6))))
            rows.writerow([f"{around} {animal}", animal])
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT of four labels and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        set_seed,
    )

    folder = tmp_path_factory.mktemp("tiny-bert")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    ).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.2,  # the usual 0.02 makes so narrow a network learn late
        num_labels=4,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ViT of seven labels and its processor."""
    from transformers import ViTConfig, ViTForImageClassification, set_seed

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_labels=7,
    )
    set_seed(0)
    return _save_image_model(ViTForImageClassification(config), tmp_path_factory.mktemp("tiny-vit"))


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ResNet (it has BatchNorm) of seven labels and its processor."""
    from transformers import ResNetConfig, ResNetForImageClassification, set_seed

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        image_size=16,
        num_labels=7,
    )
    set_seed(0)
    return _save_image_model(
        ResNetForImageClassification(config), tmp_path_factory.mktemp("tiny-resnet")
    )


def _save_image_model(model: object, folder: Path) -> Path:
    from transformers import ViTImageProcessor

    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
