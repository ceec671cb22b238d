"""A rate that is too high: one error, and its hint is what the folder takes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome


@pytest.mark.parametrize("rate", ["1e300", "1e36", "1e18"])
@pytest.mark.parametrize("strategy", ["full", "gradual"])
def test_the_hint_of_a_run_that_diverged_is_what_its_folder_takes(
    rate: str, strategy: str, recipe: Callable[..., Outcome], tiny_vit: Path, tmp_path: Path
) -> None:
    words = ("--model_name_or_path", tiny_vit, "--dataset_name", "builtin:digits", "--use_cpu")
    few = ("--examples_per_class", 2, "--strategy", strategy, "--max_steps", 4)
    flags = (*words, *few, "--output_dir", tmp_path / "out", "--disable_tqdm", "true")
    ended = recipe("image_classification", *flags, "--learning_rate", rate)
    assert ended.code == 2, ended.err
    error, hint = ended.err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert "not finite" in error
    assert "a smaller --learning_rate, and --overwrite_output_dir" in hint
    assert not (tmp_path / "out" / "model.safetensors").exists()
    mended = ("--learning_rate", "1e-3", "--overwrite_output_dir")
    assert recipe("image_classification", *flags, *mended).code == 0
