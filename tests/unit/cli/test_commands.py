import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hf_transfer.cli import main as cli
from hf_transfer.cli.run import recipe_names
from tests.conftest import ROOT


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hf-transfer", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_every_recipe_is_offered() -> None:
    assert len(recipe_names()) >= 5
    assert recipe_names() == sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


def test_an_unknown_recipe_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "run", "image_clasification") == 2
    assert "did you mean 'image_classification'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ((), "hf-transfer: COMMAND is missing", "{run,plan,predict,embed,cache}"),
        (("run",), "hf-transfer run: recipe is missing", "hf-transfer run recipe"),
        (("plan",), "hf-transfer plan: recipe is missing", "hf-transfer plan recipe"),
        (("predict",), "hf-transfer predict: model is missing", "model INPUT"),
        (("predict", "x"), "hf-transfer predict: INPUT is missing", "model INPUT"),
        (("embed", "x"), "hf-transfer embed: data is missing", "hf-transfer embed model data"),
        (("runn", "x"), "unknown command 'runn'", "did you mean 'run'"),
        (("train",), "unknown command 'train'", "run, plan, predict, embed, cache"),
        (("predict", "--top_k", "a", "b", "c"), "--top_k 'a' is not a whole number", "whole"),
        (("cache", "--until_below"), "--until_below has no value", "cache --help"),
        (("cache", "list"), "hf-transfer cache does not take 'list'", "cache --help"),
        (("cache", "--nope"), "hf-transfer cache does not take '--nope'", "cache --help"),
        (("--nope",), "hf-transfer: COMMAND is missing", "--help"),
        (("run", "nonsense"), "unknown recipe 'nonsense'", "text_classification"),
        (("plan", "pretrain"), "'pretrain' has no plan to show", "text_classification"),
    ],
)
def test_a_wrong_command_ends_in_one_error_and_one_hint(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
    hint: str,
) -> None:
    assert _run(monkeypatch, *words) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert fix.startswith("hint: ")
    assert hint in fix


def test_the_version_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("hf-transfer-learning 0.")


@pytest.mark.parametrize("name", ["text-classification", "text_classification"])
def test_a_recipe_is_found_by_the_name_of_its_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert _run(monkeypatch, "plan", name, "--help") == 0
    assert capsys.readouterr().out.startswith("usage: hf-transfer plan text_classification ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--keep_adapter", "--strategy", "lora"), "moves with the installed package"),
        (("--optim", "adamw_bnb_8bit"), "needs the package bitsandbytes"),
        (("--report_to", "nope"), "unknown value of --report_to 'nope'"),
        (("--augmentation", "nope"), "unknown --augmentation 'nope'"),
        (("--metrics", "nope"), "unknown metric 'nope'"),
        (("--seed", "-1"), "--seed -1 is too small"),
    ],
)
def test_a_plan_is_refused_as_its_run_would_be_before_data_are_read(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    words = ("--model_name_or_path", "builtin:letters-resnet", "--dataset_name", "./nowhere.csv")
    assert _run(monkeypatch, "plan", "image_classification", *words, "--use_cpu", *flags) == 2
    assert message in capsys.readouterr().err


def test_a_plan_for_another_kind_of_input_is_refused_before_data_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model_name_or_path", "builtin:letters-resnet", "--dataset_name", "./nowhere.csv")
    assert _run(monkeypatch, "plan", "text_classification", *words, "--use_cpu") == 2
    assert "was pretrained on image, text-classification needs text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("pretrain", ("--model_type", "resnett"), "unknown model type 'resnett'"),
        (
            "pretrain",
            ("--model_type", "resnet", "--config_overrides", "[1]"),
            "--config_overrides '[1]' is not a JSON object",
        ),
        (
            "pretrain",
            ("--model_type", "bert", "--task", "text-classification"),
            "--tokenizer_name is missing",
        ),
        (
            "image_classification",
            ("--model_name_or_path", "builtin:letters-resnet", "--report_to", "dvclive"),
            "--report_to dvclive needs the package dvclive",
        ),
        (
            "image_classification",
            ("--model_name_or_path", "builtin:letters-resnet", "--fp16"),
            "--fp16 needs a GPU",
        ),
        (
            "image_classification",
            ("--model_name_or_path", "builtin:letters-resnet", "--optim_args", "fast"),
            "does not take --optim_args fast",
        ),
        (
            "image_classification",
            ("--model_name_or_path", "builtin:letters-resnet", "--cache_dir", "/etc/passwd"),
            "cannot write into '/etc/passwd'",
        ),
        (
            "compare_strategies",
            ("--model_name_or_path", "builtin:letters-resnet", "--report_to", "tensorboard"),
            "--report_to tensorboard does not belong to a comparison",
        ),
    ],
)
def test_a_run_is_refused_before_data_are_read_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    recipe: str,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--dataset_name", "./nowhere.csv", "--use_cpu", *flags)
    assert _run(monkeypatch, "run", recipe, *words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_predict_answers_for_pictures_a_line_each(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_vit: object,
    picture_folder: object,
) -> None:
    code = _run(
        monkeypatch,
        "predict",
        str(tiny_vit),
        f"{picture_folder}/dark/1.png",
        f"{picture_folder}/bright",
    )
    lines = capsys.readouterr().out.strip().splitlines()
    assert code == 0
    assert len(lines) == 41
    name, label, probability = lines[0].split("\t")
    assert name.endswith("dark/1.png")
    assert label.startswith("LABEL_")
    assert 0 < float(probability) <= 1


def test_predict_answers_for_texts_with_the_best_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_bert: object
) -> None:
    assert _run(monkeypatch, "predict", str(tiny_bert), "the cat sleeps", "--top_k", "2") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["the cat sleeps"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", "./nowhere", "x"), "no model './nowhere'"),
        (("predict", "VIT", "nowhere.png"), "no file 'nowhere.png'"),
        (("predict", "VIT", "README.md"), "'README.md' is not an image"),
        (("predict", "VIT", "x.png", "--top_k", "0"), "--top_k 0 is too small"),
    ],
)
def test_predict_says_in_one_line_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_vit: object,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(ROOT)
    assert _run(monkeypatch, *(str(tiny_vit) if word == "VIT" else word for word in words)) == 2
    assert f"error: {message}" in capsys.readouterr().err


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A store of two entries, one of them last used 40 days ago."""
    from hf_transfer.store.activations import write_activations

    for key, days in (("new" * 21, 0), ("old" * 21, 40)):
        rows = [{"x": np.zeros(250_000)}]
        write_activations(tmp_path, key, 1, [rows], {"model": key[:3], "boundary": "head"})
        os.utime(
            tmp_path / f"{key}.activations" / "manifest.json", (time.time() - days * 86_400,) * 2
        )
    return tmp_path


def test_cache_lists_what_is_stored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache_dir: Path
) -> None:
    assert _run(monkeypatch, "cache", "--cache_dir", str(cache_dir)) == 0
    new, old, total = capsys.readouterr().out.splitlines()
    assert new.split()[:5] == ["newnewnewnew", "2.0", "MB", "1", "rows"]
    assert old.endswith("model=old boundary=head")
    assert total == f"2 entries, 4.0 MB in {cache_dir}"


@pytest.mark.parametrize(
    ("flags", "freed", "left"),
    [
        ((), "freed 0 bytes", 2),
        (("--older_than", "30d"), "freed 2.0 MB", 1),
        (("--until-below", "3MB"), "freed 2.0 MB", 1),
        (("--all",), "freed 4.0 MB", 0),
        (("--all", "--dry-run"), "would free 4.0 MB", 2),
    ],
)
def test_cache_prunes_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cache_dir: Path,
    flags: tuple[str, ...],
    freed: str,
    left: int,
) -> None:
    assert _run(monkeypatch, "cache", "--prune", "--cache-dir", str(cache_dir), *flags) == 0
    assert capsys.readouterr().out == f"{freed} in {cache_dir}\n"
    assert len(list(cache_dir.iterdir())) == left


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prune", "--older_than", "soon"), "--older_than 'soon' is not understood"),
        (("--prune", "--until_below", "3m"), "--until_below '3m' is not understood"),
        (("--all",), "say what --prune removes"),
    ],
)
def test_cache_says_in_one_line_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cache_dir: Path,
    flags: tuple[str, ...],
    message: str,
) -> None:
    assert _run(monkeypatch, "cache", "--cache_dir", str(cache_dir), *flags) == 2
    assert message in capsys.readouterr().err
    assert len(list(cache_dir.iterdir())) == 2


@pytest.mark.parametrize("flags", [(), ("--prune", "--all")])
@pytest.mark.parametrize("name", ["nowhere", "file.txt"])
def test_cache_refuses_what_is_no_folder(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    flags: tuple[str, ...],
) -> None:
    (tmp_path / "file.txt").write_text("mine")
    assert _run(monkeypatch, "cache", "--cache_dir", str(tmp_path / name), *flags) == 2
    assert "is no folder" in capsys.readouterr().err
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_who_reads_the_list_of_the_cache_may_stop(cache_dir: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from hf_transfer.cli.main import main; main()"
    words = [sys.executable, "-c", code, "cache", "--cache_dir", str(cache_dir)]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [("--help",), ("cache",)])
def test_neither_help_nor_cache_waits_for_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    code = "import sys; from hf_transfer.cli.main import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
