"""Several labels a row, and numbers, through the recipes as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image
from PIL import Image as PILImage
from transformers import pipeline

from hf_transfer.cli import main as cli
from hf_transfer.record import read_record
from tests.conftest import WORDS, Outcome

Recipe = Callable[..., Outcome]
ANIMALS = ("bird", "cat", "dog")


@pytest.fixture(scope="module")
def tagged_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON Lines file of 240 texts, each with the list of the animals that it names."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(240):
        named = [animal for animal in ANIMALS if rng.random() < 0.4]
        words = rng.permutation([*named, *rng.choice(WORDS[:3] + WORDS[6:], size=3)])
        rows.append({"text": " ".join(words), "animals": named})
    return _write(tmp_path_factory.mktemp("tagged") / "animals.jsonl", rows)


@pytest.fixture(scope="module")
def grey_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 100 grey pictures and the price of each: 1,000 for white, 500 for black."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("grey") / "prices"
    levels = rng.integers(0, 256, 100)
    pictures = [PILImage.new("RGB", (16, 16), (int(level),) * 3) for level in levels]
    rows = Dataset.from_dict(
        {"image": pictures, "price": [500 + 500 * int(level) / 255 for level in levels]}
    )
    DatasetDict(train=rows.cast_column("image", Image())).save_to_disk(folder)
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def _predict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> list[list[str]]:
    monkeypatch.setattr("sys.argv", ["hf-transfer", "predict", *map(str, words)])
    cli.main()
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_texts_with_several_labels_are_learned_and_every_label_has_its_own_probability(
    recipe: Recipe,
    tiny_bert: Path,
    tagged_texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    ended = recipe(
        "text_classification",
        *(
            "--model_name_or_path",
            tiny_bert,
            "--dataset_name",
            tagged_texts,
            "--label_column",
            "animals",
        ),
        *(
            "--output_dir",
            folder,
            "--num_train_epochs",
            "20",
            "--learning_rate",
            "5e-3",
            "--strategy",
            "full",
        ),
        *("--baselines", "majority", "raw_inputs", "--disable_tqdm", "true", "--use_cpu"),
    )
    assert ended.code == 0, ended.err
    assert "exact match" in ended.err
    record = read_record(folder / "record.json")
    assert record.problem_type == "multi_label_classification"
    assert record.dataset.labels == list(ANIMALS)
    assert list(record.metrics) == ["f1_micro", "f1_macro", "exact_match", "log_loss"]
    assert record.metrics["f1_micro"].value > 0.9 > record.baselines["majority"]["f1_micro"].value
    assert [row.label for row in record.evaluation.per_class] == list(ANIMALS)
    answers = pipeline("text-classification", model=str(folder))(
        ["a cat and a dog", "red"], top_k=3
    )
    both, nothing = ({a["label"]: a["score"] for a in given} for given in answers)
    assert min(both["cat"], both["dog"]) > 0.5 > both["bird"]
    assert max(nothing.values()) < 0.5
    rows = _predict(monkeypatch, capsys, folder, "a cat and a dog", "red")
    assert sorted(row[1] for row in rows[:2]) == ["cat", "dog"]
    assert rows[2:] == [["red", "none", ""]]


def test_pictures_are_learned_to_a_number_in_its_own_unit(
    recipe: Recipe,
    tiny_resnet: Path,
    grey_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    ended = recipe(
        "image_classification",
        *(
            "--model_name_or_path",
            tiny_resnet,
            "--dataset_name",
            grey_pictures,
            "--label_column",
            "price",
        ),
        *(
            "--problem_type",
            "regression",
            "--output_dir",
            folder,
            "--strategy",
            "full",
            "--max_steps",
            "150",
        ),
        *(
            "--learning_rate",
            "5e-3",
            "--baselines",
            "majority",
            "raw_inputs",
            "--disable_tqdm",
            "true",
            "--use_cpu",
        ),
    )
    assert ended.code == 0, ended.err
    record = read_record(folder / "record.json")
    assert record.dataset.labels == ["price"]
    assert list(record.metrics) == ["rmse", "mae", "r2"]
    assert record.metrics["r2"].value > 0.9
    assert record.baselines["majority"]["rmse"].value > 100
    assert len(record.evaluation.points) == record.evaluation.n == 20
    assert record.evaluation.confusion is None
    assert (folder / "plots" / "truth_and_answer.png").is_file()
    assert "truth_and_answer.png" in (folder / "README.md").read_text(encoding="utf-8")
    PILImage.new("RGB", (16, 16), (128, 128, 128)).save(tmp_path / "grey.png")
    (answer,) = pipeline("image-classification", model=str(folder))(str(tmp_path / "grey.png"))
    assert answer["score"] == pytest.approx(751, abs=75)
    (row,) = _predict(monkeypatch, capsys, folder, tmp_path / "grey.png")
    assert row[1:] == ["price", f"{answer['score']:.6g}"]


@pytest.mark.parametrize(
    ("labels", "flags", "message"),
    [
        ([0.5, 1.5], (), "holds float64 values"),
        (["1", "2 or 3"], ("--problem_type", "regression"), "holds string values"),
        ([0.5, None], ("--problem_type", "regression"), "15 of 30 rows of the split 'train'"),
        (
            [0.5, 1.5],
            ("--problem_type", "regression", "--class_weights", "balanced"),
            "--class_weights balanced does",
        ),
        (
            [0.5, 1.5],
            ("--problem_type", "regression", "--examples_per_class", "2"),
            "examples per class can be counted",
        ),
        (
            [0.5, 1.5],
            ("--problem_type", "regression", "--metrics", "accuracy"),
            "'accuracy' does not fit regression",
        ),
        (
            [["a"], ["b"]],
            ("--metrics", "accuracy"),
            "'accuracy' does not fit multi_label_classification",
        ),
        (
            [["a"], ["b"]],
            ("--label_smoothing_factor", "0.1"),
            "--label_smoothing_factor 0.1 does not fit",
        ),
        ([["a"], []], (), "one label only: 'a'"),
        ([["a"], ["b"]], ("--problem_type", "multilabel"), "unknown --problem_type 'multilabel'"),
    ],
)
def test_labels_and_flags_that_do_not_fit_are_one_error_line_before_anything_is_written(
    labels: list[Any],
    flags: tuple[str, ...],
    message: str,
    recipe: Recipe,
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    rows = [{"text": "red cat", "label": labels[number % 2]} for number in range(30)]
    source = _write(tmp_path / "rows.jsonl", rows)
    words = (
        "--model_name_or_path",
        tiny_bert,
        "--dataset_name",
        source,
        "--output_dir",
        tmp_path / "run",
    )
    ended = recipe("text_classification", *words, *flags, "--max_steps", "2", "--use_cpu")
    assert ended.code == 2
    said = [
        line
        for line in ended.err.splitlines()
        if line.startswith(("error: ", "hint: ", "Traceback"))
    ]
    assert [line.split(":")[0] for line in said] == ["error", "hint"]
    assert message in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_comparison_is_of_one_class_a_row(
    problem_type: str, recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    words = (
        "--model_name_or_path",
        tiny_bert,
        "--dataset_name",
        "x.csv",
        "--output_dir",
        tmp_path / "study",
    )
    ended = recipe("compare_strategies", *words, "--problem_type", problem_type, "--use_cpu")
    assert ended.code == 2
    assert (
        f"error: a comparison needs one class per row, not --problem_type {problem_type}"
        in ended.err
    )


def test_pretraining_is_of_one_class_a_row(
    recipe: Recipe, grey_pictures: Path, tmp_path: Path
) -> None:
    overrides = '{"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}'
    ended = recipe(
        "pretrain",
        *(
            "--model_type",
            "resnet",
            "--config_overrides",
            overrides,
            "--dataset_name",
            grey_pictures,
        ),
        *(
            "--label_column",
            "price",
            "--problem_type",
            "regression",
            "--output_dir",
            tmp_path / "run",
            "--use_cpu",
        ),
    )
    assert ended.code == 2
    assert (
        "hint: load the checkpoint for these data; pre-training takes one class per row"
        in ended.err
    )
