"""Two real processes over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from hf_transfer.config.data import DataConfig
from hf_transfer.data.builtin import load_builtin
from hf_transfer.data.sources import load_data
from hf_transfer.record import RunRecord, read_record
from hf_transfer.store.entries import list_entries
from hf_transfer.tasks import find_task
from tests.conftest import ROOT


def _launch_digits(folder: Path, processes: int) -> str:
    flags = [
        "--config",
        str(ROOT / "recipes/configs/digits.yaml"),
        "--output_dir",
        str(folder),
        "--strategy",
        "full",
    ]
    return _launch("image_classification", processes, *flags)


def _launch(recipe: str, processes: int, *flags: str) -> str:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    # `--cpu --num_processes 2` would start one process; with --multi_gpu and --use_cpu there are two over gloo.
    several = (
        ["--multi_gpu", "--num_processes", str(processes)]
        if processes > 1
        else ["--num_processes", "1"]
    )
    settings = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    batch = [
        "--per_device_train_batch_size",
        str(16 // processes),
        "--disable_tqdm",
        "true",
        "--use_cpu",
    ]
    words = [*launcher, *several, *settings, str(ROOT / "recipes" / f"{recipe}.py"), *flags, *batch]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _log_loss_of_the_saved_model(folder: Path) -> float:
    rows, _ = load_builtin("digits")
    classify = pipeline("image-classification", model=str(folder))
    answers = classify(rows["test"]["image"][:], top_k=10)
    shares = [{answer["label"]: answer["score"] for answer in given} for given in answers]
    return float(
        -np.mean(
            [
                np.log(s[str(label)])
                for s, label in zip(shares, rows["test"]["label"][:], strict=True)
            ]
        )
    )


def test_two_processes_give_one_folder_and_the_metrics_of_one_over_every_example(
    tmp_path: Path,
) -> None:
    records: dict[int, RunRecord] = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes) / "run"
        said = _launch_digits(folder, processes)
        assert said.count("look at it") == 1
        assert [path.name for path in folder.parent.iterdir()] == ["run"]
        records[processes] = read_record(folder / "record.json")
    assert records[2].environment["processes"] == 2
    assert records[1].evaluation.n == records[2].evaluation.n == 500
    assert sum(count for _, _, count in records[2].evaluation.confusion) == 500
    assert (
        records[1].model.hyperparameters["batch_size"]
        == records[2].model.hyperparameters["batch_size"]
    )
    assert _log_loss_of_the_saved_model(tmp_path / "2" / "run") == pytest.approx(
        records[2].metrics["log_loss"].value, abs=1e-4
    )
    one, two = records[1].metrics["accuracy"], records[2].metrics["accuracy"]
    assert one.low <= two.high
    assert two.low <= one.high


def test_two_processes_count_every_number_once_and_the_saved_model_answers_as_measured(
    tiny_bert: Path, tmp_path: Path
) -> None:
    # Trainer takes a label of -100 for none: here half of the numbers are such.
    rows = [
        {"text": ("a red cat", "the dog")[n % 2] + " runs" * (n % 3), "cold": -100 * (n % 2)}
        for n in range(115)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = [
        "--dataset_name",
        str(tmp_path / "rows.jsonl"),
        "--label_column",
        "cold",
        "--problem_type",
        "regression",
    ]
    flags = [
        "--max_steps",
        "30",
        "--learning_rate",
        "5e-3",
        "--strategy",
        "full",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    _launch("text_classification", 2, "--model_name_or_path", str(tiny_bert), *data, *flags)
    record = read_record(tmp_path / "run" / "record.json")
    assert len(record.evaluation.points) == record.evaluation.n == 23
    held = load_data(
        DataConfig(data[1], label_column="cold", problem_type="regression"),
        find_task("text-classification"),
        seed=0,
    ).test
    answers = pipeline("text-classification", model=str(tmp_path / "run"))(held["text"][:])
    errors = np.array([answer["score"] for answer in answers]) - np.array(held["label"][:])
    assert record.metrics["rmse"].value == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-3)
    assert record.metrics["r2"].value > 0.5


def _share_a_pass(strategy: str, model: Path, texts: Path, tmp_path: Path) -> dict[int, RunRecord]:
    """The records of a run in one and in two processes, each with a store of its own."""
    flags = [
        "--model_name_or_path",
        str(model),
        "--dataset_name",
        str(texts),
        "--strategy",
        strategy,
    ]
    flags += [
        "--text_column",
        "sentence",
        "--label_column",
        "animal",
        "--per_device_eval_batch_size",
        "8",
    ]
    flags += ["--pooling", "own"]  # to judge both would fill the store beforehand
    records = {}
    for processes in (1, 2):
        folder, store = tmp_path / str(processes), tmp_path / f"store{processes}"
        places = ["--output_dir", str(folder), "--cache_dir", str(store)]
        _launch("text_classification", processes, *flags, *places, "--max_steps", "6")
        records[processes] = read_record(folder / "record.json")
        entry = list_entries(store)[-1]
        assert entry.rows is not None
        assert [path.name for path in store.iterdir() if path.name.startswith(".")] == []
    (one,), (two,) = records[1].phases, records[2].phases
    assert (one.frozen_passes, one.cached_bytes) == (
        two.frozen_passes,
        two.cached_bytes,
    )
    assert one.cache == two.cache == "miss"
    return records


def test_two_processes_share_the_frozen_pass_and_give_the_head_and_the_metrics_of_one(
    tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    records = _share_a_pass("head", tiny_bert, text_file, tmp_path)
    one, two = (
        load_file(tmp_path / folder / "model.safetensors")["classifier.weight"] for folder in "12"
    )
    assert torch.allclose(one, two, atol=1e-6)
    assert len(records[1].metrics) > 2
    for name, metric in records[1].metrics.items():
        assert records[2].metrics[name].value == pytest.approx(metric.value, abs=1e-5), name


def test_two_processes_train_layers_on_the_pass_that_they_share(
    tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    records = _share_a_pass("top_layers", tiny_bert, text_file, tmp_path)
    assert records[1].phases[0].steps == records[2].phases[0].steps == 6


def test_torchrun_on_a_cpu_starts_processes_that_know_of_one_another(
    tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    data = ["--dataset_name", str(text_file), "--label_column", "animal"]
    flags = ["--strategy", "full", "--max_steps", "2", "--disable_tqdm", "true"]
    recipe = str(ROOT / "recipes" / "text_classification.py")
    model = ["--model_name_or_path", str(tiny_bert), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*launcher, recipe, *model, *data, *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run" / "record.json").environment["processes"] == 2


@pytest.mark.parametrize("strategy", ["head", "full"])
def test_two_processes_answer_every_word_once_and_give_the_metrics_of_one(
    strategy: str, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = []
    for number in range(61):
        words = ["the", "red", "cat", "", "runs"] * (1 + number % 4) + ["dog"] * (number % 3)
        tags = ["B-PET" if word in ("cat", "dog") else "O" for word in words]
        rows.append({"tokens": words, "tags": tags})
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = ["--dataset_name", str(tmp_path / "rows.jsonl"), "--max_length", "12"]
    flags = ["--model_name_or_path", str(tiny_bert), "--strategy", strategy, "--max_steps", "30"]
    records = {}
    for processes in (1, 2):
        folder = ["--output_dir", str(tmp_path / str(processes))]
        _launch("token_classification", processes, *data, *flags, *folder)
        records[processes] = read_record(tmp_path / str(processes) / "record.json")
    one, two = records[1].evaluation, records[2].evaluation
    assert one.n == two.n == 12
    assert sum(cell[2] for cell in one.confusion) == sum(cell[2] for cell in two.confusion)
    closeness = 1e-6 if strategy == "head" else 0.05  # dropout differs
    for name, metric in one.metrics.items():
        assert two.metrics[name].value == pytest.approx(metric.value, abs=closeness), name


def test_two_processes_agree_where_images_cannot_be_kept(tiny_vit: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    said = _launch(
        *("image_classification", 2, "--model_name_or_path", str(tiny_vit)),
        *("--dataset_name", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out")),
        *("--strategy", "full", "--max_steps", "2", "--cache_limit_gb", "1e-6"),
        *("--cache_dir", str(tmp_path / "cache"), "--dataloader_num_workers", "0"),
    )
    assert "images are decoded in every epoch" in said
    assert read_record(tmp_path / "out" / "record.json").environment["processes"] == 2
