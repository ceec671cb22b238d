import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_transfer.record import read_record
from hf_transfer.store.entries import list_entries
from tests.conftest import ROOT


def _start(model: Path, output: Path, store: Path) -> subprocess.Popen[bytes]:
    recipe = [
        sys.executable,
        str(ROOT / "recipes" / "text_classification.py"),
        "--use_cpu",
        "--disable_tqdm",
        "true",
    ]
    given = [
        "--model_name_or_path",
        str(model),
        "--dataset_name",
        "builtin:docstrings",
        "--strategy",
        "head",
    ]
    slowly = ["--per_device_eval_batch_size", "1", "--max_train_samples", "600"]
    places = ["--output_dir", str(output), "--cache_dir", str(store)]
    return subprocess.Popen(
        [*recipe, *given, *slowly, *places],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
    killed = _start(tiny_bert, tmp_path / "killed", store)
    _wait_for_values(killed, store, 20_000)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list_entries(store) == []
    assert not (tmp_path / "killed").exists()
    weights = []
    for name, place in (("again", store), ("unbroken", tmp_path / "other")):
        assert _start(tiny_bert, tmp_path / name, place).wait() == 0
        (phase,) = read_record(tmp_path / name / "record.json").phases
        assert (phase.frozen_passes, phase.cache) == (1, "miss")
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert [path for path in store.iterdir() if path.name.startswith(".")] == []
