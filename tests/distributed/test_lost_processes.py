"""Two real processes over gloo, the second of which hangs or dies."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT


def _launch(what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    victim = [str(Path(__file__).parent / "misbehave.py"), what, str(ROOT / "recipes" / "image_classification.py")]
    flags = ["--config", str(ROOT / "recipes/configs/digits.yaml"), "--strategy", "full", "--use_cpu"]
    kept = ["--output_dir", str(folder), "--save_strategy", "steps", "--save_steps", "2", "--disable_tqdm", "true"]
    return subprocess.run(
        [*launcher, *victim, *flags, *kept, "--ddp_timeout", "10"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("fetch", "process 1 of 2 (by rank) has not moved for"),
        pytest.param("hang", "process 1 of 2 (by rank) has not moved for", marks=pytest.mark.slow),
        pytest.param("freeze", "process 1 of 2 (by rank) has not moved for", marks=pytest.mark.slow),
        ("die", "process 1 of 2 (by rank) is gone"),
    ],
)
def test_a_process_that_is_lost_ends_the_run_in_time_and_is_named(what: str, said: str, tmp_path: Path) -> None:
    began = time.monotonic()
    done = _launch(what, tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.count(said) == 1, done.stderr
    assert time.monotonic() - began < 90
    assert any((tmp_path / "run" / "checkpoints").glob("state-*-step-2"))
