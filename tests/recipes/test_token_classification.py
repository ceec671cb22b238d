"""Words with tags, through the recipe as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from hf_transfer.cli import main as cli
from hf_transfer.inference import answers, load_finished
from hf_transfer.record import RunRecord, read_record
from tests.conftest import Outcome

Recipe = Callable[..., Outcome]
COLOURS, ANIMALS = ("red", "blue", "green"), ("cat", "dog", "bird")
OTHERS = ("runs", "sleeps", "sings", "the", "a", "is")
NAMES = ["B-PET", "I-PET", "O"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON Lines file of 160 sentences. A pet is an animal with its colour; a colour alone is none."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(160):
        words: list[str] = []
        tags: list[str] = []
        for kind in rng.integers(0, 4, int(rng.integers(2, 6))):
            if kind == 0:
                words += [str(rng.choice(COLOURS)), str(rng.choice(ANIMALS))]
                tags += ["B-PET", "I-PET"]
            elif kind == 1:
                words += [str(rng.choice(COLOURS)), str(rng.choice(OTHERS))]
                tags += ["O", "O"]
            else:
                words.append(str(rng.choice(OTHERS)))
                tags.append("O")
        rows.append({"tokens": words, "tags": tags})
    path = tmp_path_factory.mktemp("pets") / "pets.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def run(recipe: Recipe, tiny_bert: Path, pets: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """A function that runs the recipe on the pets, into the folder `run`."""

    def start(*flags: object) -> Outcome:
        words = ("--model_name_or_path", tiny_bert, "--dataset_name", pets, "--use_cpu")
        folder = ("--output_dir", tmp_path / "run", "--disable_tqdm", "true")
        return recipe("token_classification", *words, *folder, *flags)

    return start


FEW_STEPS = ("--max_steps", "40", "--learning_rate", "5e-3")


def _finished(ended: Outcome, folder: Path) -> RunRecord:
    assert ended.code == 0, ended.err
    record = read_record(folder / "record.json")
    assert record.task == "token-classification"
    assert record.dataset.labels == NAMES
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert [model.config.id2label[number] for number in range(3)] == NAMES
    return record


def test_full_learns_entities_that_a_word_alone_does_not_show(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    ended = run(
        "--strategy",
        "full",
        "--max_steps",
        "300",
        "--learning_rate",
        "5e-3",
        *("--baselines", "majority", "raw_inputs"),
    )
    record = _finished(ended, tmp_path / "run")
    assert list(record.metrics) == ["entity_f1", "accuracy", "f1_macro"]
    words_alone = record.baselines["raw_inputs"]["entity_f1"].value
    assert record.metrics["entity_f1"].value > 0.75 > 0.6 > words_alone
    assert record.baselines["majority"]["entity_f1"].value == 0
    assert record.evaluation.n == record.metrics["accuracy"].n == 32
    assert [row.label for row in record.evaluation.per_class] == ["PET"]
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "Gives every word of a text one of 3 tags" in card
    assert "pipeline_tag: token-classification" in card
    assert "F1 (interval)" in card
    tag = pipeline("token-classification", model=str(tmp_path / "run"))
    found = [(each["word"], each["entity"]) for each in tag("the red cat sleeps")]
    assert {("red", "B-PET"), ("cat", "I-PET")} <= set(found)


def test_the_head_is_solved_on_the_features_of_words_and_computed_once(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    first = _finished(run("--strategy", "head"), tmp_path / "run")
    (phase,) = first.phases
    assert phase.solved is not None
    assert phase.solved.cross_validated is not False
    assert (phase.steps, phase.cache) == (0, "miss")
    again = _finished(run("--strategy", "head", "--overwrite_output_dir"), tmp_path / "run")
    assert again.phases[0].cache == "hit"
    assert again.metrics == first.metrics


def test_a_solved_head_is_that_of_logistic_regression_on_all_words(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    record = _finished(run("--strategy", "head"), tmp_path / "run")
    assert record.metrics["accuracy"].value > record.baselines["majority"]["accuracy"].value


@pytest.mark.parametrize(
    ("strategy", "phases"),
    [
        ("head_then_full", ["head", "full"]),
        ("top_layers", ["top_layers"]),
        ("gradual", ["head", "top layer", "full"]),
        ("lora", ["lora"]),
        ("scratch", ["scratch"]),
    ],
)
def test_every_other_strategy_trains_and_gives_a_plain_checkpoint(
    strategy: str, phases: list[str], run: Callable[..., Outcome], tmp_path: Path
) -> None:
    record = _finished(run("--strategy", strategy, *FEW_STEPS), tmp_path / "run")
    assert [phase.name for phase in record.phases] == phases
    assert record.strategy.used == strategy


def test_a_head_of_smoothed_labels_is_trained_in_steps_and_says_so(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    flags = ("--strategy", "head", "--label_smoothing_factor", "0.1", *FEW_STEPS)
    record = _finished(run(*flags), tmp_path / "run")
    assert record.phases[0].steps == 40
    assert any("trained in steps, not solved" in reason for reason in record.strategy.reasons)


def test_rare_tags_can_weigh_more(run: Callable[..., Outcome], tmp_path: Path) -> None:
    plain = _finished(run("--strategy", "head"), tmp_path / "run")
    flags = ("--strategy", "head", "--class_weights", "balanced", "--overwrite_output_dir")
    balanced = _finished(run(*flags), tmp_path / "run")
    (before,), (after,) = plain.evaluation.per_class, balanced.evaluation.per_class
    assert after.recall.value > before.recall.value


def test_auto_tries_strategies_on_held_out_sentences(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    record = _finished(run("--strategy", "auto", *FEW_STEPS), tmp_path / "run")
    assert record.strategy.requested == "auto"
    assert record.strategy.evidence
    assert "contrastive" not in [trial.strategy for trial in record.strategy.evidence]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--strategy", "contrastive"),
            "--strategy contrastive needs one class per row, and each word",
        ),
        (("--metrics", "f1_micro"), "unknown metric of words with tags 'f1_micro'"),
        (("--examples_per_class", "3"), "not for token-classification"),
        (("--problem_type", "regression"), "--problem_type regression does not belong"),
        (("--class_weights", "sampler"), "--class_weights sampler does not fit words with tags"),
    ],
)
def test_what_does_not_fit_words_is_one_error_and_a_hint(
    flags: tuple[str, ...], message: str, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    ended = run(*flags)
    assert ended.code == 2
    said = [line for line in ended.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.split(":")[0] for line in said] == ["error", "hint"]
    assert message in said[0]
    assert not (tmp_path / "run").exists()


def test_a_comparison_is_not_of_words(recipe: Recipe, tiny_bert: Path, pets: Path) -> None:
    words = ("--model_name_or_path", tiny_bert, "--dataset_name", pets)
    ended = recipe("compare_strategies", *words, "--task", "token-classification", "--use_cpu")
    assert ended.code == 2
    assert "error: a comparison needs one class per row, not a tag per word" in ended.err


def test_metrics_of_entities_are_refused_where_tags_mark_none(
    recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = [{"tokens": ["the", "cat"], "tags": ["DET", "NOUN"]}] * 20
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--model_name_or_path", tiny_bert, "--dataset_name", tmp_path / "plain.jsonl")
    folder = ("--output_dir", tmp_path / "run", "--use_cpu")
    ended = recipe("token_classification", *words, *folder, "--metrics", "entity_f1")
    assert ended.code == 2
    assert "error: the metric 'entity_f1' needs tags that mark entities" in ended.err


def test_long_documents_are_answered_in_windows_as_short_ones_are(
    run: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _finished(run("--strategy", "full", "--max_length", "8", *FEW_STEPS), tmp_path / "run")
    document = ["the", "red", "cat", "sleeps", "", "is"] * 20
    finished = load_finished(str(tmp_path / "run"))
    assert finished.predictor.encoder.limit["model_max_length"] == 8
    (answer,) = answers(finished, [{"text": document}])
    assert [word for word, _, _ in answer] == document
    (tmp_path / "texts.txt").write_text("the red cat.\n\na dog\n")
    monkeypatch.setattr(
        "sys.argv", ["hf-transfer", "predict", str(tmp_path / "run"), str(tmp_path / "texts.txt")]
    )
    cli.main()
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["the", "red", "cat", ".", "", "a", "dog"]
    assert {line[1] for line in lines if len(line) > 1} <= set(NAMES)


def test_predict_reads_words_as_they_stand_in_a_table_and_gives_the_best_tags(
    run: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _finished(run("--strategy", "head"), tmp_path / "run")
    (tmp_path / "new.jsonl").write_text('{"tokens": ["the", "red cat"]}\n')
    monkeypatch.setattr(
        "sys.argv",
        [
            "hf-transfer",
            "predict",
            str(tmp_path / "run"),
            str(tmp_path / "new.jsonl"),
            "--top_k",
            "2",
        ],
    )
    cli.main()
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["the", "the", "red cat", "red cat"]


def test_the_saved_tokenizer_is_that_of_training(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    _finished(run("--strategy", "head", "--max_length", "16"), tmp_path / "run")
    assert AutoTokenizer.from_pretrained(tmp_path / "run").model_max_length == 16
