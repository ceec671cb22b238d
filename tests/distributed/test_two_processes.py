"""Two real processes over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

from hf_transfer.data.builtin import load_builtin
from hf_transfer.record import RunRecord, read_record
from tests.conftest import ROOT


def _launch(folder: Path, processes: int) -> str:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    # `--cpu --num_processes 2` would start one process; with --multi_gpu and --use_cpu there are two over gloo.
    several = ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else ["--num_processes", "1"]
    settings = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    flags = ["--config", str(ROOT / "recipes/configs/digits.yaml"), "--output_dir", str(folder), "--use_cpu"]
    flags += ["--strategy", "full"]
    flags += ["--per_device_train_batch_size", str(16 // processes), "--disable_tqdm", "true"]
    words = [*launcher, *several, *settings, str(ROOT / "recipes/image_classification.py"), *flags]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _log_loss_of_the_saved_model(folder: Path) -> float:
    rows, _ = load_builtin("digits")
    classify = pipeline("image-classification", model=str(folder))
    answers = classify(rows["test"]["image"][:], top_k=10)
    shares = [{answer["label"]: answer["score"] for answer in given} for given in answers]
    return float(-np.mean([np.log(s[str(label)]) for s, label in zip(shares, rows["test"]["label"][:], strict=True)]))


def test_two_processes_give_one_folder_and_the_metrics_of_one_over_every_example(tmp_path: Path) -> None:
    records: dict[int, RunRecord] = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes) / "run"
        said = _launch(folder, processes)
        assert said.count("look at it") == 1
        assert [path.name for path in folder.parent.iterdir()] == ["run"]
        records[processes] = read_record(folder / "record.json")
    assert records[2].environment["processes"] == 2
    assert records[1].evaluation["n"] == records[2].evaluation["n"] == 500
    assert sum(count for _, _, count in records[2].evaluation["confusion"]) == 500
    assert records[1].model["hyperparameters"]["batch_size"] == records[2].model["hyperparameters"]["batch_size"]
    assert _log_loss_of_the_saved_model(tmp_path / "2" / "run") == pytest.approx(
        records[2].metrics["log_loss"].value, abs=1e-4
    )
    one, two = records[1].metrics["accuracy"], records[2].metrics["accuracy"]
    assert one.low <= two.value <= one.high
