"""The wheel, in a clean environment outside the repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_wheel_runs_the_digits_recipe_in_a_clean_environment(tmp_path: Path) -> None:
    def run(*words: object) -> str:
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        done = subprocess.run(
            [*map(str, words)], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        tmp_path / "dist",
        ROOT,
    )
    (wheel,) = (tmp_path / "dist").glob("hf_transfer_learning-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "clean")
    python = tmp_path / "clean" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    where = run(python, "-c", "import hf_transfer; print(hf_transfer.__file__)")
    assert str(tmp_path / "clean") in where
    said = run(
        tmp_path / "clean" / "bin" / "hf-transfer",
        "run",
        "image_classification",
        "--config",
        "digits.yaml",
    )
    assert "strategy head_then_full" in said
    assert (tmp_path / "out" / "digits" / "README.md").is_file()
