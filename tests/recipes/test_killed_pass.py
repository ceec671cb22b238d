import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_transfer.record import read_record
from hf_transfer.store.entries import list_entries
from tests.conftest import ROOT


def _start(recipe: str, *flags: object) -> subprocess.Popen[bytes]:
    path = str(ROOT / "recipes" / f"{recipe}.py")
    return subprocess.Popen(
        [sys.executable, path, "--use_cpu", "--disable_tqdm", "true", *map(str, flags)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _start_on_texts(model: Path, output: Path, store: Path) -> subprocess.Popen[bytes]:
    return _start(
        "text_classification",
        *("--model_name_or_path", model, "--dataset_name", "builtin:docstrings"),
        *("--strategy", "head", "--max_train_samples", 600, "--cache_inputs", "false"),
        *("--per_device_eval_batch_size", 1, "--output_dir", output, "--cache_dir", store),
    )


def _wait_for_values(process: subprocess.Popen[bytes], store: Path, least: int) -> None:
    """Return as soon as so many bytes of an unfinished pass are on the disk."""
    while process.poll() is None:
        if sum(file.stat().st_size for file in store.glob(".*/*.values")) >= least:
            return
        time.sleep(0.001)
    pytest.fail("the pass was over before it could be killed")


def test_a_pass_that_was_killed_leaves_nothing_that_is_trusted(
    tiny_bert: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    killed = _start_on_texts(tiny_bert, tmp_path / "killed", store)
    _wait_for_values(killed, store, 20_000)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list_entries(store) == []
    assert not (tmp_path / "killed").exists()
    weights = []
    for name, place in (("again", store), ("unbroken", tmp_path / "other")):
        assert _start_on_texts(tiny_bert, tmp_path / name, place).wait() == 0
        (phase,) = read_record(tmp_path / name / "record.json").phases
        assert (phase.frozen_passes, phase.cache) == (1, "miss")
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert [path for path in store.iterdir() if path.name.startswith(".")] == []


def test_images_whose_preparation_was_killed_are_prepared_anew(
    tiny_vit: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(path)

    def start(output: str, store: Path) -> subprocess.Popen[bytes]:
        return _start(
            "image_classification",
            *("--model_name_or_path", tiny_vit, "--dataset_name", tmp_path / "images"),
            *("--strategy", "full", "--max_steps", 2),
            *("--output_dir", tmp_path / output, "--cache_dir", store),
        )

    store = tmp_path / "store"
    store.mkdir()
    killed = start("killed", store)
    _wait_for_values(killed, store, 1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list_entries(store) == []
    for name, place in (("again", store), ("unbroken", tmp_path / "other")):
        assert start(name, place).wait() == 0
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "unbroken")
    ]
    assert weights[0] == weights[1]
    assert [entry.rows for entry in list_entries(store)] == [300]
    assert [path for path in store.iterdir() if path.name.startswith(".")] == []
