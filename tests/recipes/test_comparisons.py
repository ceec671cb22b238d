"""A comparison that failed leaves nothing that binds the repaired command."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome

Recipe = Callable[..., Outcome]


@pytest.fixture
def compare(recipe: Recipe, tiny_resnet: Path, tmp_path: Path) -> Recipe:
    """A comparison of one strategy on one label per class, into `out`, with more flags."""

    def run(*flags: object) -> Outcome:
        words = ("--model_name_or_path", tiny_resnet, "--output_dir", tmp_path / "out", "--use_cpu")
        few = ("--strategies", "head", "--budgets", 1, "--draws", 1, "--disable_tqdm", "true")
        return recipe("compare_strategies", *words, *few, *flags)

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset_name", "./nowhere"), "no folder or file './nowhere'"),
        (("--label_column", "klass"), "unknown column 'klass'"),
        (("--budgets", "0"), "--budgets 0 is too small"),
        (("--metrics", "log_loss"), "a comparison needs the metric accuracy"),
        (("--report_to", "tensorboard"), "--report_to tensorboard does not belong"),
    ],
)
def test_a_comparison_that_fails_writes_nothing(
    flags: tuple[str, ...], message: str, compare: Recipe, tmp_path: Path
) -> None:
    ended = compare("--dataset_name", "builtin:digits", *flags)
    assert ended.code == 2
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_a_comparison_of_something_else_starts_over_only_where_it_may(
    compare: Recipe, tmp_path: Path
) -> None:
    digits = ("--dataset_name", "builtin:digits")
    assert compare(*digits).code == 0
    (record,) = (tmp_path / "out" / "runs").iterdir()
    before = record.stat().st_mtime_ns
    refused = compare(*digits, "--pooling", "own", "--max_train_samples", 500)
    assert refused.code == 2
    assert "holds another study" in refused.err
    assert "--overwrite_output_dir" in refused.err
    assert record.stat().st_mtime_ns == before
    assert compare(*digits, "--max_train_samples", 500, "--overwrite_output_dir").code == 0
    assert record.stat().st_mtime_ns > before
    assert compare(*digits, "--max_train_samples", 500).code == 0
