"""Every recipe is run as a user runs it, on real input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    pipeline,
)

from hf_transfer.cli.flags import read_config
from hf_transfer.config.run import COMPARING, FINE_TUNING, PRETRAINING
from hf_transfer.data.builtin import load_builtin
from hf_transfer.record import BaseModelFacts, DroppedExample, read_record
from hf_transfer.resume.states import States
from hf_transfer.sharing.hub import published_files
from tests.conftest import ROOT, Outcome

Recipe = Callable[..., Outcome]
GROUPS = {"pretrain": PRETRAINING, "compare_strategies": COMPARING}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo's run."""
    folder = tmp_path_factory.mktemp("demo") / "digits"
    recipe, config = ROOT / "recipes/image_classification.py", ROOT / "recipes/configs/digits.yaml"
    words = [
        sys.executable,
        str(recipe),
        "--config",
        str(config),
        "--output_dir",
        str(folder),
        "--use_cpu",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hf-transfer predict" in done.stderr
    return folder


def test_the_demo_is_right_on_at_least_88_percent_of_all_other_digits(digits: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(digits)
    assert list(model.config.id2label.values()) == [str(digit) for digit in range(10)]
    rows, _ = load_builtin("digits")
    classify = pipeline("image-classification", model=str(digits))
    answers = classify(rows["test"]["image"][:], top_k=1)
    right = [
        answer[0]["label"] == str(label)
        for answer, label in zip(answers, rows["test"]["label"][:], strict=True)
    ]
    record = read_record(digits / "record.json")
    assert sum(right) / len(right) == record.metrics["accuracy"].value >= 0.88


def test_a_run_leaves_a_whole_folder_and_no_path_of_this_machine(digits: Path) -> None:
    files = published_files(digits)
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "plots/confusion_matrix.png",
        "plots/learning_curve.png",
        "preprocessor_config.json",
        "record.json",
        "report.html",
    }
    inside = {str(path.relative_to(digits)) for path in digits.rglob("*") if path.is_file()}
    assert inside - set(files) == {"checkpoints/lock", "checkpoints/run.json"}
    assert set(files) <= inside
    for name in files:
        if not name.endswith((".png", ".safetensors")):
            text = (digits / name).read_text(encoding="utf-8")
            assert str(ROOT) not in text
            assert str(digits.parent) not in text


def test_nothing_is_left_beside_the_folder(digits: Path) -> None:
    assert [path.name for path in digits.parent.iterdir()] == ["digits"]


def test_all_files_may_be_read_by_whom_the_umask_lets(digits: Path) -> None:
    plain = digits.parent / "plain"
    plain.write_text("")
    mode = plain.stat().st_mode
    plain.unlink()
    files = [path for path in digits.iterdir() if path.is_file()]
    assert len(files) > 4
    assert {path.stat().st_mode for path in files} == {mode}


def test_the_same_command_again_finds_all_done_and_changes_nothing(
    digits: Path, recipe: Recipe
) -> None:
    before = (digits / "record.json").read_bytes()
    config = ROOT / "recipes/configs/digits.yaml"
    ended = recipe("image_classification", "--config", config, "--output_dir", digits)
    assert ended.code == 0
    assert "is finished" in ended.err
    assert (digits / "record.json").read_bytes() == before


def test_texts_are_learned_from_csv_files_with_validation(
    recipe: Recipe, tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    folder, texts = tmp_path / "run", tmp_path / "texts"
    heading, *rows = text_file.read_text().splitlines()
    texts.mkdir()
    for name, own in (("train", rows[:160]), ("validation", rows[160:200]), ("test", rows[200:])):
        (texts / f"{name}.csv").write_text("\n".join((heading, *own)))
    ended = recipe(
        "text_classification",
        *("--model_name_or_path", tiny_bert, "--dataset_name", texts, "--label_column", "animal"),
        *(
            "--output_dir",
            folder,
            "--num_train_epochs",
            "20",
            "--learning_rate",
            "5e-3",
            "--strategy",
            "full",
        ),
        *("--class_weights", "balanced", "--early_stopping_patience", "9", "--use_cpu"),
    )
    assert ended.code == 0, ended.err
    record = read_record(folder / "record.json")
    assert record.metrics["accuracy"].value > 0.8 > record.baselines["majority"]["accuracy"].value
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label[0] == "bird"
    assert pipeline("text-classification", model=str(folder))("red dog")[0]["label"] == "dog"


def test_bad_examples_are_left_out_and_stand_in_the_record_and_the_card(
    recipe: Recipe, tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    folder, path = tmp_path / "run", tmp_path / "animals.csv"
    path.write_text(text_file.read_text() + '"  ",cat\nred dog,\n')
    words = (
        "--model_name_or_path",
        tiny_bert,
        "--dataset_name",
        path,
        "--label_column",
        "animal",
        "--use_cpu",
    )
    flags = (*words, "--output_dir", folder, "--strategy", "full", "--max_steps", "2")
    refused = recipe("text_classification", *flags, "--on_bad_example", "raise")
    assert refused.code == 2
    assert "error: cannot use the row train/240 (no text)" in refused.err
    ended = recipe("text_classification", *flags)
    assert ended.code == 0, ended.err
    assert "left out 2 of 242 examples" in ended.err
    dataset = read_record(folder / "record.json").dataset
    assert dataset.dropped == [
        DroppedExample("train/240", "no text"),
        DroppedExample("train/241", "no label"),
    ]
    assert sum(vars(dataset.splits).values()) == 240
    for name in ("README.md", "report.html"):
        assert "no text (1), no label (1)" in (folder / name).read_text(encoding="utf-8")


def test_the_best_step_on_validation_is_what_is_saved(
    recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ended = recipe(
        "text_classification",
        *(
            "--model_name_or_path",
            tiny_bert,
            "--dataset_name",
            "builtin:docstrings",
            "--output_dir",
            folder,
        ),
        *(
            "--strategy",
            "full",
            "--max_steps",
            "12",
            "--learning_rate",
            "0.05",
            "--max_length",
            "12",
            "--use_cpu",
        ),
        *(
            "--eval_steps",
            "3",
            "--logging_steps",
            "3",
            "--logging_strategy",
            "steps",
            "--max_train_samples",
            "200",
        ),
    )
    assert ended.code == 0, ended.err
    (phase,) = read_record(folder / "record.json").phases
    losses = {entry.step: entry.eval_loss for entry in phase.history if entry.eval_loss is not None}
    assert sorted(losses) == [3, 6, 9, 12]
    assert phase.best_step == min(losses, key=lambda step: losses[step])


def test_pairs_of_texts_are_learned_together(
    recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = [
        {"first": a, "second": b, "label": int(a == b)}
        for a in ("cat", "dog")
        for b in ("cat", "dog")
    ] * 15
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    ended = recipe(
        "text_classification",
        *(
            "--model_name_or_path",
            tiny_bert,
            "--dataset_name",
            tmp_path / "pairs.jsonl",
            "--output_dir",
            tmp_path / "o",
        ),
        *(
            "--text_column",
            "first",
            "--text_pair_column",
            "second",
            "--max_steps",
            "2",
            "--use_cpu",
        ),
    )
    assert ended.code == 0, ended.err
    assert read_record(tmp_path / "o" / "record.json").dataset.labels == ["0", "1"]


def test_a_folder_of_pictures_is_learned_by_class(
    recipe: Recipe, tiny_vit: Path, picture_folder: Path, tmp_path: Path
) -> None:
    ended = recipe(
        "image_classification",
        *(
            "--model_name_or_path",
            tiny_vit,
            "--dataset_name",
            picture_folder,
            "--output_dir",
            tmp_path / "run",
        ),
        *("--strategy", "lora", "--learning_rate", "1e-2", "--use_cpu"),
    )
    assert ended.code == 0, ended.err
    assert read_record(tmp_path / "run" / "record.json").metrics["accuracy"].value == 1.0
    assert not list((tmp_path / "run").glob("adapter*"))


def test_states_stay_below_the_run_until_it_is_finished_and_are_not_published(
    recipe: Recipe,
    tiny_vit: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[str] = []
    clear = States.clear

    def look_and_clear(self: States) -> None:
        kept.extend(path.name for path in self.folder.glob("state-*"))
        clear(self)

    monkeypatch.setattr(States, "clear", look_and_clear)
    ended = recipe(
        "image_classification",
        *(
            "--model_name_or_path",
            tiny_vit,
            "--dataset_name",
            picture_folder,
            "--output_dir",
            tmp_path / "run",
        ),
        *(
            "--strategy",
            "full",
            "--max_steps",
            "4",
            "--save_strategy",
            "steps",
            "--save_steps",
            "2",
            "--use_cpu",
        ),
    )
    assert ended.code == 0, ended.err
    assert sorted(kept) == ["state-000001-full-step-2", "state-000002-full-step-4"]
    assert not any((tmp_path / "run" / "checkpoints").glob("state-*"))
    assert not any(name.startswith("checkpoints") for name in published_files(tmp_path / "run"))


def test_a_source_model_is_pretrained_and_another_task_starts_from_it(
    recipe: Recipe, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    ended = recipe(
        "pretrain",
        *(
            "--model_type",
            "resnet",
            "--dataset_name",
            "builtin:digits",
            "--output_dir",
            source,
            "--max_steps",
            "5",
        ),
        *(
            "--config_overrides",
            '{"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}',
        ),
        *(
            "--processor_overrides",
            '{"size": {"height": 16, "width": 16}}',
            "--license",
            "mit",
            "--use_cpu",
        ),
    )
    assert ended.code == 0, ended.err
    assert "trained from random weights" in (source / "README.md").read_text()
    ended = recipe(
        "image_classification",
        *(
            "--model_name_or_path",
            source,
            "--dataset_name",
            "builtin:digits",
            "--examples_per_class",
            "2",
        ),
        *("--output_dir", target, "--max_steps", "4", "--use_cpu"),
    )
    assert ended.code == 0, ended.err
    record = read_record(target / "record.json")
    assert record.base_model == BaseModelFacts("local:source", None, "mit")
    # As many labels as the source task has, and of the same names: the head is new all the same.
    assert record.model.new_parameters == ["classifier.1.weight", "classifier.1.bias"]


def test_a_comparison_goes_on_where_it_stopped(
    recipe: Recipe, tiny_resnet: Path, tmp_path: Path
) -> None:
    flags = (
        *(
            "--model_name_or_path",
            tiny_resnet,
            "--dataset_name",
            "builtin:digits",
            "--output_dir",
            tmp_path,
        ),
        *(
            "--strategies",
            "head",
            "scratch",
            "--budgets",
            "1",
            "2",
            "--draws",
            "2",
            "--max_steps",
            "2",
        ),
        *("--baselines", "majority", "raw_inputs", "--disable_tqdm", "true", "--use_cpu"),
    )
    ended = recipe("compare_strategies", *flags)
    assert ended.code == 0, ended.err
    runs = sorted((tmp_path / "runs").glob("*.json"))
    assert len(runs) == 8
    assert "| raw_inputs |" in ended.err
    assert (tmp_path / "table.png").is_file()
    runs[0].unlink()
    kept = runs[1].stat().st_mtime_ns
    assert "| labels per class | 1 | 2 |" in recipe("compare_strategies", *flags).err
    assert runs[0].is_file()
    assert runs[1].stat().st_mtime_ns == kept


def test_a_comparison_takes_the_flags_of_its_strategies(
    recipe: Recipe, tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    flags = (
        "--model_name_or_path",
        tiny_bert,
        "--dataset_name",
        text_file,
        "--label_column",
        "animal",
    )
    asked = (
        "--task",
        "text-classification",
        "--strategies",
        "head",
        "--budgets",
        "2",
        "--draws",
        "1",
    )
    given = ("--pooling", "mean", "--use_cpu", "--output_dir", tmp_path / "study")
    ended = recipe("compare_strategies", *flags, *asked, *given)
    assert ended.code == 0, ended.err
    (run,) = (tmp_path / "study" / "runs").iterdir()
    assert read_record(run).strategy.pooling == "mean"


def test_a_comparison_of_something_else_is_refused(
    recipe: Recipe, tiny_resnet: Path, tmp_path: Path
) -> None:
    flags = (
        *(
            "--model_name_or_path",
            tiny_resnet,
            "--dataset_name",
            "builtin:digits",
            "--output_dir",
            tmp_path,
        ),
        *(
            "--strategies",
            "head",
            "--budgets",
            "1",
            "--draws",
            "1",
            "--max_steps",
            "2",
            "--disable_tqdm",
            "true",
        ),
    )
    assert recipe("compare_strategies", *flags, "--use_cpu").code == 0
    for other in (("--learning_rate", "0.5"), ("--layer_decay", "0.5", "--strategies", "full")):
        ended = recipe("compare_strategies", *flags, "--use_cpu", *other)
        assert ended.code == 2
        assert f"holds another study: {other[0]} was" in ended.err
        assert f"now {other[1]}" in ended.err
    asked = tmp_path / "study.json"
    asked.write_text(asked.read_text().replace('"--layer_decay"', '"--a_flag_of_yesterday"'))
    ended = recipe("compare_strategies", *flags, "--use_cpu")
    assert ended.code == 2
    assert "begun with another version of hf_transfer" in ended.err


def test_overwriting_replaces_the_old_run_and_keeps_what_else_is_there(
    recipe: Recipe, tiny_vit: Path, tmp_path: Path
) -> None:
    flags = (
        "--dataset_name",
        "builtin:digits",
        "--examples_per_class",
        "1",
        "--max_steps",
        "2",
        "--strategy",
        "head",
    )
    words = (
        "--model_name_or_path",
        tiny_vit,
        *flags,
        "--output_dir",
        tmp_path / "run",
        "--use_cpu",
    )
    assert recipe("image_classification", *words).code == 0
    for mine in ("mine.safetensors", "plots/mine.txt"):
        (tmp_path / "run" / mine).write_text("mine")
    assert recipe("image_classification", *words, "--overwrite_output_dir", "--seed", "7").code == 0
    assert read_record(tmp_path / "run" / "record.json").seed == 7
    assert (tmp_path / "run" / "mine.safetensors").read_text() == "mine"
    assert (tmp_path / "run" / "plots" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strategy", "hed"], "unknown --strategy 'hed'"),
        (["--label_column", "klass"], "unknown column 'klass'"),
        (["--dataset_name", "./nowhere"], "no folder or file './nowhere'"),
        (
            ["--model_name_or_path", "BERT"],
            "was pretrained on text, image-classification needs image",
        ),
        (["--model_name_or_path", "./nowhere"], "no checkpoint folder './nowhere'"),
        (["--dataset_name", "ONE"], "one class only"),
        (["--lerning_rate", "1"], "unknown flag '--lerning_rate'"),
        (["--metrics", "acuracy"], "unknown metric 'acuracy'"),
        (["--push_to_hub"], "cannot push"),
    ],
)
def test_wrong_input_is_one_error_line_and_one_hint_and_nothing_is_written(
    flags: list[str],
    message: str,
    recipe: Recipe,
    tiny_vit: Path,
    tiny_bert: Path,
    tmp_path: Path,
    picture_folder: Path,
) -> None:
    one = tmp_path / "one"
    shutil.copytree(picture_folder / "dark", one / "only")
    places = {"BERT": tiny_bert, "ONE": one}
    ended = recipe(
        "image_classification",
        *(
            "--model_name_or_path",
            tiny_vit,
            "--dataset_name",
            "builtin:digits",
            "--output_dir",
            tmp_path / "run",
        ),
        *(places.get(flag, flag) for flag in flags),
    )
    assert ended.code == 2
    said = [
        line
        for line in ended.err.splitlines()
        if line.startswith(("error: ", "hint: ", "Traceback"))
    ]
    assert [line.split(":")[0] for line in said] == ["error", "hint"]
    assert message in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_every_config_is_whole_and_says_its_command() -> None:
    configs = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
    assert len(configs) >= 4
    for path in configs:
        command = path.read_text(encoding="utf-8").splitlines()[0]
        name = next(word for word in command.split() if word.startswith("recipes/")).removeprefix(
            "recipes/"
        )
        assert path.name in command
        groups = GROUPS.get(name.removesuffix(".py"), FINE_TUNING)
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = read_config(
            groups=groups, argv=["--config", str(path), "--overwrite_output_dir", "--use_cpu"]
        )
        assert config.output_dir == Path(given["output_dir"])
