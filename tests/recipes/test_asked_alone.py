"""The saved model, loaded plainly and asked row by row, gives the metrics of the record."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, pipeline

from hf_transfer.config.data import DataConfig
from hf_transfer.data.pixels import read_image
from hf_transfer.data.sources import Data, load_data
from hf_transfer.evaluation.metrics import SCORING, load_metric
from hf_transfer.record import read_record
from hf_transfer.tasks import find_task
from tests.conftest import WORDS, Outcome

Recipe = Callable[..., Outcome]
ROWS = 60


@dataclass(frozen=True)
class Case:
    """A kind of model and of data."""

    model: str  # fixture
    write: Callable[[Path], Path]  # writes the data, returns what --dataset_name names
    data: dict[str, Any]  # flags of the data
    metric: str


def _glyph(number: int) -> Image.Image:
    """Dark or bright by the number, in a mode that changes from image to image."""
    rng = np.random.default_rng(number)
    grey = rng.integers(0, 100, (16, 16), dtype=np.uint8) + np.uint8(120 * (number % 2))
    image = Image.fromarray(grey)
    if number % 5 == 0:
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if number % 5 == 1:
        image.putalpha(Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)))
    return image.convert("CMYK") if number % 5 == 2 else image


def _class_folders(folder: Path) -> Path:
    for number in range(ROWS):
        path = folder / "images" / ("dark", "bright")[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = Image.Exif()
        tags[0x0112] = 1 + number % 8
        _glyph(number).save(path, exif=tags)
    return folder / "images"


def _images_with(labels: Callable[[int], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rows = []
        for number in range(ROWS):
            _glyph(number).save(folder / f"{number}.tif")
            content = (folder / f"{number}.tif").read_bytes()
            rows.append({"image": {"bytes": content, "path": None}, "label": labels(number)})
        pd.DataFrame(rows).to_parquet(folder / "images.parquet")
        return folder / "images.parquet"

    return write


def _text(number: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join([WORDS[number % 2], *rng.choice(WORDS[3:], rng.integers(1, 9))])


def _texts_with(labels: Callable[[int], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rows = [
            {"text": _text(number), "other": _text(number // 2), "label": labels(number)}
            for number in range(ROWS)
        ]
        pd.DataFrame(rows).to_json(folder / "texts.jsonl", orient="records", lines=True)
        return folder / "texts.jsonl"

    return write


def _parity(number: int) -> str:
    return ("even", "odd")[number % 2]


def _tags(number: int) -> list[str]:
    return [name for name, step in (("two", 2), ("three", 3)) if number % step == 0]


NUMBERS = {"problem_type": "regression"}
TEXT, PAIR = {"text_column": "text"}, {"text_column": "text", "text_pair_column": "other"}
CASES: dict[str, Case] = {
    "images of classes": Case("tiny_vit", _class_folders, {}, "accuracy"),
    "images of classes, ResNet": Case("tiny_resnet", _class_folders, {}, "accuracy"),
    "images of several labels": Case("tiny_vit", _images_with(_tags), {}, "exact_match"),
    "images of numbers": Case("tiny_vit", _images_with(lambda n: n % 2 + 0.5), NUMBERS, "r2"),
    "texts of classes": Case("tiny_bert", _texts_with(_parity), TEXT, "accuracy"),
    "pairs of classes": Case("tiny_bert", _texts_with(_parity), PAIR, "accuracy"),
    "texts of several labels": Case("tiny_bert", _texts_with(_tags), TEXT, "exact_match"),
    "texts of numbers": Case("tiny_bert", _texts_with(lambda n: n % 2 + 0.5), TEXT | NUMBERS, "r2"),
}


def _logits(folder: Path, data: Data) -> np.ndarray:
    """The logits of each test row, asked alone."""
    task = data.task
    model = task.model_class.from_pretrained(folder).eval()
    processor = task.processor_class.from_pretrained(folder)
    rows = []
    for row in data.test:
        if task.has_images:
            inputs = processor(read_image(row["image"]), return_tensors="pt")
        else:
            pair = row.get("text_pair")
            inputs = processor(row["text"], pair, truncation=True, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("name", CASES)
def test_asked_alone_it_gives_the_metrics_of_the_record(
    name: str, recipe: Recipe, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case = CASES[name]
    (tmp_path / "data").mkdir()
    source = case.write(tmp_path / "data")
    kind = "text" if "text_column" in case.data else "image"
    flags = [word for flag, value in case.data.items() for word in (f"--{flag}", value)]
    ended = recipe(
        f"{kind}_classification",
        *("--model_name_or_path", request.getfixturevalue(case.model), "--use_cpu"),
        *("--dataset_name", source, "--output_dir", tmp_path / "run", "--strategy", "full"),
        *("--num_train_epochs", "2", "--learning_rate", "1e-3", "--disable_tqdm", "true", *flags),
    )
    assert ended.code == 0, ended.err
    record = read_record(tmp_path / "run" / "record.json")
    data = load_data(
        DataConfig(str(source), **case.data), find_task(f"{kind}-classification"), record.seed
    )
    outputs = SCORING[data.problem_type].activation(_logits(tmp_path / "run", data))
    labels = np.asarray(data.test["label"][:])
    score = load_metric(case.metric, data.problem_type).score(labels, outputs)
    exact = 1e-3 if case.metric == "r2" else 1e-9
    assert score == pytest.approx(record.metrics[case.metric].value, abs=exact)
    if "log_loss" in record.metrics:
        loss = load_metric("log_loss", data.problem_type).score(labels, outputs)
        assert loss == pytest.approx(record.metrics["log_loss"].value, abs=1e-3)


def test_a_plain_pipeline_truncates_where_training_did(
    recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    source = _texts_with(_parity)(tmp_path / "data")
    ended = recipe(
        "text_classification",
        *("--model_name_or_path", tiny_bert, "--dataset_name", source, "--text_column", "text"),
        *("--output_dir", tmp_path / "run", "--max_length", "7", "--strategy", "head"),
        *("--use_cpu", "--disable_tqdm", "true"),
    )
    assert ended.code == 0, ended.err
    card = (tmp_path / "run" / "README.md").read_text()
    assert 'classify("a text", truncation=True)' in card
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert len(tokenizer(" ".join(WORDS), truncation=True)["input_ids"]) == 7
    classify = pipeline("text-classification", model=str(tmp_path / "run"))
    short, long = classify([_text(3), " ".join([_text(3)] * 60)], truncation=True)
    assert short["label"] in ("even", "odd")
    assert long["label"] in ("even", "odd")


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_lines_of_the_card_load_the_adapter_with_its_head(
    kind: str,
    recipe: Recipe,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = request.getfixturevalue({"text": "tiny_bert", "image": "tiny_vit"}[kind])
    (tmp_path / "data").mkdir()
    source = {"text": _texts_with(_parity), "image": _class_folders}[kind](tmp_path / "data")
    flags = ["--text_column", "text"] if kind == "text" else []
    ended = recipe(
        f"{kind}_classification",
        *("--model_name_or_path", base, "--dataset_name", source, "--output_dir", "out/run"),
        *("--strategy", "lora", "--keep_adapter", "--learning_rate", "1e-2", "--use_cpu", *flags),
        *("--num_train_epochs", "8", "--disable_tqdm", "true"),
    )
    assert ended.code == 0, ended.err
    card = (tmp_path / "out" / "run" / "README.md").read_text()
    lines = re.search(r"```python\n(.*?)\n(?:classify\(.*?)```", card, re.DOTALL)
    assert lines
    names: dict[str, Any] = {}
    exec(lines[1].replace(f'"{base.name}"', f'"{base}"'), names)
    record = read_record(tmp_path / "out" / "run" / "record.json")
    data = load_data(
        DataConfig(str(source), text_column="text" if kind == "text" else None),
        find_task(f"{kind}-classification"),
        record.seed,
    )
    inputs = [read_image(image) for image in data.test["image"]] if kind == "image" else None
    answers = names["classify"](inputs or data.test["text"][:], top_k=1)
    predicted = [data.labels.index(answer[0]["label"]) for answer in answers]
    share = np.mean(np.asarray(predicted) == np.asarray(data.test["label"][:]))
    assert share == record.metrics["accuracy"].value
    assert share > 0.9
