"""Where a run writes: named after model and data, and never into the data."""

import logging
from pathlib import Path

import pytest

from hf_transfer.cli.flags import read_config
from hf_transfer.config.run import COMPARING, PRETRAINING
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.validate import validate
from hf_transfer.errors import UserError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _words(model: str, data: str, *others: str) -> list[str]:
    return ["--model_name_or_path", model, "--dataset_name", data, "--use_cpu", *others]


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ("google/vit-base-patch16-224", "pets", "out/vit-base-patch16-224-pets"),
        ("Qwen/Qwen2.5-0.5B", "mine/reviews.csv", "out/Qwen2.5-0.5B-reviews"),
        ("builtin:letters-resnet", "builtin:digits", "out/letters-resnet-digits"),
        ("x", "my data/a b.parquet", "out/x-a-b"),
        ("x", "data/*.csv", "out/x-data"),
        ("x", "train.jsonl.gz", "out/x-train"),
        ("./", "../y/", "out/MODEL-y"),
    ],
)
def test_a_run_without_an_output_folder_is_named_after_model_and_data(
    model: str, data: str, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hf_transfer"):
        config = read_config(argv=_words(model, data))
    expected = expected.replace("MODEL", tmp_path.name)
    assert config.training.output_dir == expected
    assert caplog.messages == [f"no --output_dir was given, it is {expected}"]


def test_a_comparison_has_a_folder_of_its_own() -> None:
    config = read_config(groups=COMPARING, argv=_words("x", "y"))
    assert config.training.output_dir == "out/x-y-comparison"


def test_pre_training_is_named_after_the_architecture() -> None:
    words = ["--model_type", "resnet", "--dataset_name", "y", "--use_cpu"]
    config = read_config(groups=PRETRAINING, argv=words)
    assert config.training.output_dir == "out/resnet-y"


def test_a_config_made_in_python_has_no_output_folder_that_nobody_named() -> None:
    assert TrainingConfig(use_cpu=True).output_dir is None


@pytest.mark.parametrize(
    ("data", "output", "relation"),
    [
        ("pets", "pets", "is"),
        ("pets", "./pets/../pets", "is"),
        ("pets", ".", "holds"),
        ("pets", "pets/out", "lies inside"),
        ("pets/table.csv", "pets", "holds"),
        ("pets/*.csv", "pets", "is"),
        ("pets/t[a-z]*.csv", ".", "holds"),
    ],
)
@pytest.mark.parametrize("overwrites", ["true", "false"])
def test_a_dataset_is_never_overwritten(
    data: str, output: str, relation: str, overwrites: str
) -> None:
    Path("pets").mkdir()
    Path("pets/table.csv").write_text("text,label\n")
    words = _words("x", data, "--output_dir", output, "--overwrite_output_dir", overwrites)
    with pytest.raises(UserError, match=f"{relation} the dataset") as refusal:
        read_config(argv=words)
    assert "overwrite" not in refusal.value.hint


@pytest.mark.parametrize("data", ["pets", "pets/*.csv", "*.csv", "table.csv", "user/pets"])
def test_a_dataset_beside_the_output_folder_is_no_obstacle(data: str) -> None:
    Path("pets").mkdir()
    Path("table.csv").write_text("text,label\n")
    config = read_config(argv=_words("x", data, "--output_dir", "out"))
    assert config.training.output_dir == "out"


@pytest.mark.parametrize("overwrites", ["true", "false"])
def test_the_base_model_is_never_overwritten(overwrites: str) -> None:
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    words = _words("base", "y", "--output_dir", "./base", "--overwrite_output_dir", overwrites)
    with pytest.raises(UserError, match="holds the base model") as refusal:
        read_config(argv=words)
    assert "overwrite" not in refusal.value.hint


def test_a_plan_may_be_asked_for_a_run_that_is_there() -> None:
    Path("out/x-y").mkdir(parents=True)
    Path("out/x-y/record.json").write_text("{}")
    with pytest.raises(UserError, match="holds another run"):
        read_config(argv=_words("x", "y"))
    validate(read_config(argv=_words("x", "y"), writes=False), writes=False)


@pytest.mark.parametrize("name", ["record.json", "mine.txt"])
def test_a_comparison_writes_into_no_folder_of_something_else(name: str) -> None:
    Path("out").mkdir()
    Path("out", name).write_text("{}")
    with pytest.raises(UserError, match="the output folder 'out'"):
        read_config(groups=COMPARING, argv=_words("x", "y", "--output_dir", "out"))


def test_a_comparison_goes_on_in_its_own_folder() -> None:
    Path("out").mkdir()
    Path("out/study.json").write_text("{}")
    assert read_config(groups=COMPARING, argv=_words("x", "y", "--output_dir", "out"))
