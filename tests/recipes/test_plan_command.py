"""`hf-transfer plan` beside what a run with the same flags then does."""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hf_transfer.cli import main as cli
from hf_transfer.cli.plan import plannable_recipes
from hf_transfer.record import read_record
from tests.conftest import ROOT, Outcome

Recipe = Callable[..., Outcome]
ANIMALS = ("cat", "dog", "bird", "red")  # a class each of the tiny BERT
UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@pytest.fixture
def plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Recipe]:
    """A function that asks for the plan of a recipe as a user does, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def ask(name: str, *flags: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hf-transfer", "plan", name, *map(str, flags)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logging.getLogger("hf_transfer").handlers.clear()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield ask
    assert not list((tmp_path / "here").iterdir())


def _phases(said: str) -> dict[str, dict[str, str]]:
    """The table of phases: name of a phase -> heading -> cell."""
    lines = said.split("\n\n")[1].splitlines()
    heading, *rows = [re.split(r" {2,}", line) for line in lines]
    return {row[0]: dict(zip(heading, row, strict=True)) for row in rows}


def _rates(said: str) -> dict[str, str]:
    _, *rows = said.split("\n\n")[2].splitlines()
    return dict(re.split(r" {2,}", row, maxsplit=1) for row in rows)


def _learns(strategy: str, said: str) -> float:
    """The share that a strategy of the table of auto learns, in percent."""
    found = re.search(rf"^{strategy} +(\d+\.\d+)% ", said, re.M)
    assert found, said
    return float(found[1])


def _cost(said: str) -> str:
    return said.splitlines()[-1].removeprefix("cost").strip()


def _bytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * UNITS[unit]


@pytest.fixture
def texts(tiny_bert: Path, text_file: Path) -> tuple[object, ...]:
    """Flags of a small run on texts, with validation."""
    return (
        *(
            "--model_name_or_path",
            tiny_bert,
            "--dataset_name",
            text_file,
            "--label_column",
            "animal",
        ),
        *("--per_device_train_batch_size", "16", "--use_cpu", "--disable_tqdm", "true"),
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--strategy", "gradual", "--num_train_epochs", "2"),
        ("--strategy", "gradual", "--max_steps", "7"),
        ("--strategy", "contrastive", "--num_train_epochs", "1.5"),
        ("--strategy", "lora", "--max_steps", "2"),
        ("--strategy", "top_layers", "--num_train_epochs", "1", "--label_smoothing_factor", "0.1"),
        ("--strategy", "head_then_full", "--max_steps", "4", "--pooling", "mean"),
    ],
    ids=lambda flags: " ".join(flags),
)
def test_a_run_does_what_the_plan_says(
    flags: tuple[str, ...], plan: Recipe, recipe: Recipe, texts: tuple[object, ...], tmp_path: Path
) -> None:
    own = () if "--pooling" in flags else ("--pooling", "own")
    asked = plan("text_classification", *texts, *flags, *own)
    assert asked.code == 0, asked.err
    ended = recipe("text_classification", *texts, *flags, *own, "--output_dir", tmp_path / "run")
    assert ended.code == 0, ended.err
    phases, done = _phases(asked.out), read_record(tmp_path / "run" / "record.json").phases
    assert list(phases) == [phase.name for phase in done]
    for said, phase in zip(phases.values(), done, strict=True):
        assert said["learns"].startswith(f"{phase.trainable_parameters:,} (")
        assert (said["how"] == "solved") == (phase.solved is not None)
        if said["how"] != "solved":
            assert int(said["steps"]) == phase.steps
            assert float(said["epochs"]) == pytest.approx(phase.epochs, abs=0.1)
        assert (said["computed once"] != "nothing") == (phase.frozen_passes > 0)
        if phase.cached_bytes:
            assert _bytes(said["cache"]) == pytest.approx(phase.cached_bytes, rel=0.1)
        else:
            assert said["cache"] in ("-", "in memory")


def test_printing_a_plan_writes_nothing(
    plan: Recipe, texts: tuple[object, ...], tmp_path: Path
) -> None:
    flags = (
        *texts,
        "--strategy",
        "top_layers",
        "--cache_dir",
        tmp_path / "cache",
        "--output_dir",
        tmp_path / "out",
    )
    assert plan("text_classification", *flags).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


def test_the_cost_is_that_of_full_or_far_below(plan: Recipe, texts: tuple[object, ...]) -> None:
    said = {
        name: plan("text_classification", *texts, "--strategy", name).out
        for name in ("full", "head", "scratch")
    }
    assert _cost(said["full"]) == _cost(said["scratch"]) == "1.00 x full"
    assert float(_cost(said["head"]).split()[0]) < 0.05
    assert "random weights" in said["scratch"]


def test_frozen_phases_name_their_boundary_and_what_they_keep(
    plan: Recipe, texts: tuple[object, ...]
) -> None:
    phases = _phases(plan("text_classification", *texts, "--strategy", "gradual").out)
    assert phases["head"]["computed once"] == "below the head"
    assert phases["top layer"]["computed once"] == "below layer 2"
    assert _bytes(phases["top layer"]["cache"]) > 0
    assert phases["full"]["computed once"] == "nothing"
    assert phases["full"]["learns"].endswith("(100.00%)")


def test_every_layer_has_its_rate_from_the_head_down(
    plan: Recipe, texts: tuple[object, ...]
) -> None:
    flags = ("--strategy", "head_then_full", "--learning_rate", "8e-4")
    together = _rates(plan("text_classification", *texts, *flags).out)
    assert together == {
        "head": "solved, without a rate",
        "full": "head 4.0e-04, layers 2-1 4.0e-04, embeddings 4.0e-04",  # half, behind a solved head
    }
    apart = _rates(plan("text_classification", *texts, *flags, "--layer_decay", "0.5").out)
    assert apart["full"] == "head 4.0e-04, layer 2 2.0e-04, layer 1 1.0e-04, embeddings 5.0e-05"


def test_without_a_cache_nothing_is_computed_once_and_the_plan_says_why_where_there_is_no_room(
    plan: Recipe, texts: tuple[object, ...]
) -> None:
    off = plan(
        "text_classification", *texts, "--strategy", "top_layers", "--cache_frozen", "false"
    ).out
    small = plan(
        "text_classification", *texts, "--strategy", "top_layers", "--cache_limit_gb", "1e-6"
    ).out
    kept = plan("text_classification", *texts, "--strategy", "top_layers").out
    assert _phases(off)["top_layers"]["computed once"] == "nothing"
    assert _phases(small)["top_layers"]["computed once"] == "nothing"
    assert "more than --cache_limit_gb 1e-06" in small
    assert _cost(off) == _cost(small)
    assert float(_cost(kept).split()[0]) < float(_cost(off).split()[0])


def test_auto_shows_every_strategy_and_says_among_which_it_chooses(
    plan: Recipe, texts: tuple[object, ...]
) -> None:
    said = plan("text_classification", *texts, "--strategy", "auto").out
    assert re.search(r"^full +100.00% +1.00 +full$", said, re.M)
    assert re.search(r"^head +\d+.\d+% +0.0\d+ +head$", said, re.M)
    assert re.search(r"^contrastive .* contrastive -> head$", said, re.M)
    assert (
        "auto uses head_then_full unless head, top_layers or contrastive is possible and better"
        in said
    )


def test_auto_counts_the_layers_that_were_asked_for(
    plan: Recipe, texts: tuple[object, ...]
) -> None:
    flags = (*texts, "--strategy", "auto", "--trainable_layers")
    learned = [
        _learns("top_layers", plan("text_classification", *flags, layers).out)
        for layers in ("1", "2")
    ]
    assert 0 < learned[0] < learned[1]


def test_auto_says_for_which_strategies_there_are_too_few_steps(
    plan: Recipe, texts: tuple[object, ...]
) -> None:
    said = plan("text_classification", *texts, "--strategy", "auto", "--max_steps", "1").out
    assert re.search(
        r"^gradual .*not possible: --max_steps 1 is too small for the \d phases of gradual",
        said,
        re.M,
    )
    assert re.search(r"^full .* full$", said, re.M)


def test_auto_says_which_strategies_are_not_possible(
    plan: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "text,label\n" + "\n".join(f"the cat runs,{number / 7}" for number in range(60))
    )
    words = (
        "--dataset_name",
        rows,
        "--problem_type",
        "regression",
        "--strategy",
        "auto",
        "--use_cpu",
    )
    said = plan("text_classification", "--model_name_or_path", tiny_bert, *words)
    assert re.search(
        r"^contrastive .*not possible: --strategy contrastive needs one class per row",
        said.out,
        re.M,
    )


def test_pictures_have_a_plan_too_by_a_shipped_config(plan: Recipe) -> None:
    said = plan("image_classification", "--config", "digits.yaml", "--use_cpu")
    assert said.code == 0, said.err
    assert _phases(said.out)["full"]["learns"] == "312,490 (100.00%)"
    assert re.search(r"^pooling +its own$", said.out, re.M)


@pytest.mark.parametrize(
    ("flags", "read"),
    [
        ((), "its own (--pooling auto decides by evidence when it is run)"),
        (("--pooling", "own"), "its own"),
        (("--pooling", "mean"), "the mean over all tokens"),
        (("--strategy", "scratch"), "its own (from scratch the class is taken as it is)"),
        (
            ("--strategy", "lora", "--keep_adapter"),
            "its own (the base model of an adapter has no layer for the mean)",
        ),
    ],
    ids=["auto", "own", "mean", "scratch", "adapter"],
)
def test_what_the_head_reads_is_left_open_only_where_evidence_decides(
    flags: tuple[str, ...], read: str, plan: Recipe, texts: tuple[object, ...]
) -> None:
    strategy = () if "--strategy" in flags else ("--strategy", "head")
    assert f"pooling   {read}\n" in plan("text_classification", *texts, *strategy, *flags).out


def test_a_kept_head_reads_what_it_was_trained_on(
    plan: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "text,label\n"
        + "\n".join(f"the {name},LABEL_{n}" for n, name in enumerate(ANIMALS) for _ in range(9))
    )
    words = (
        "--model_name_or_path",
        tiny_bert,
        "--dataset_name",
        rows,
        "--keep_head",
        "--strategy",
        "full",
        "--use_cpu",
    )
    said = plan("text_classification", *words)
    assert "pooling   its own (the head was kept: it reads what it was trained on)\n" in said.out, (
        said.err
    )


def test_a_pooling_that_is_not_possible_is_said_and_stays_away(plan: Recipe) -> None:
    said = plan("image_classification", "--config", "digits.yaml", "--pooling", "mean", "--use_cpu")
    assert said.code == 0
    assert re.search(r"^pooling +its own \(ResNet.* reads pixel_values, not tokens", said.out, re.M)
    assert re.search(
        r"--pooling mean: ResNet.* reads pixel_values, not tokens; its own pooling stays", said.err
    )


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("text_clasification", (), "unknown recipe 'text_clasification'"),
        ("pretrain", (), "the recipe 'pretrain' has no plan to show"),
        ("text_classification", (), "--model_name_or_path is missing"),
        ("text_classification", ("--strategy", "hed"), "unknown --strategy 'hed'"),
        ("text_classification", ("--config", "nowhere.yaml"), "no config file 'nowhere.yaml'"),
        (
            "image_classification",
            ("--config", "digits.yaml", "--dataset_name", "./no"),
            "no folder or file './no'",
        ),
    ],
)
def test_what_is_wrong_is_said_in_two_lines(
    name: str, flags: tuple[str, ...], message: str, plan: Recipe
) -> None:
    ended = plan(name, *flags)
    said = [
        line
        for line in ended.err.splitlines()
        if line.startswith(("error: ", "hint: ", "Traceback"))
    ]
    assert ended.code == 2
    assert [line.split(":")[0] for line in said] == ["error", "hint"]
    assert message in said[0]


FEW = ("--examples_per_class", "8")  # of which no validation split is made


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--strategy", "gradual", "--max_steps", "1"), "--max_steps 1 is too small for the"),
        (
            ("--strategy", "full", "--average_last", "0.5", *FEW),
            "--average_last needs a validation split",
        ),
        (("--strategy", "auto", "--wise_ft", "true", *FEW), "--wise_ft needs a validation split"),
        (
            ("--strategy", "full", "--early_stopping_patience", "2", *FEW),
            "--early_stopping_patience needs a validation",
        ),
        (("--strategy", "full", "--augmentation", "light"), "--augmentation light is for images"),
        (
            ("--strategy", "lora", "--peft_method", "lorra"),
            "unknown value of --peft_method 'lorra'",
        ),
        (
            ("--strategy", "auto", "--metrics", "rmse"),
            "the metric 'rmse' does not fit single_label_classification",
        ),
        (
            ("--strategy", "full", "--metrics", "rmse"),
            "the metric 'rmse' does not fit single_label_classification",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_run_refuses_before_it_learns_its_plan_refuses_too(
    flags: tuple[str, ...],
    message: str,
    plan: Recipe,
    recipe: Recipe,
    texts: tuple[object, ...],
    tmp_path: Path,
) -> None:
    asked = (*texts, "--pooling", "own", *flags)
    ended = [
        plan("text_classification", *asked),
        recipe("text_classification", *asked, "--output_dir", tmp_path / "run"),
    ]
    assert [each.code for each in ended] == [2, 2]
    said = [
        [line for line in each.err.splitlines() if line.startswith(("error: ", "hint: "))]
        for each in ended
    ]
    assert message in said[0][0]
    assert said[0] == said[1]


@pytest.mark.parametrize("strategy", ["full", "auto"])
@pytest.mark.parametrize("flag", ["--class_weights sampler", "--label_smoothing_factor 0.1"])
def test_flags_that_do_not_fit_the_labels_have_no_plan(
    flag: str, strategy: str, plan: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "text,label\n" + "\n".join(f"the cat runs,{number / 7}" for number in range(60))
    )
    words = (
        "--dataset_name",
        rows,
        "--problem_type",
        "regression",
        "--strategy",
        strategy,
        "--use_cpu",
    )
    ended = plan("text_classification", "--model_name_or_path", tiny_bert, *words, *flag.split())
    assert ended.code == 2
    assert f"error: {flag} does not fit regression" in ended.err


def test_every_recipe_of_a_task_has_a_plan() -> None:
    assert plannable_recipes() == sorted(
        path.stem for path in (ROOT / "recipes").glob("*_classification.py")
    )
