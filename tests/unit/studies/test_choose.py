from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Value

from hf_transfer.config.data import DataConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import Data, Origin, load_data
from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import log_loss
from hf_transfer.linear_probe.solve import solve_head
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import headless, read_logits
from hf_transfer.models.pooling import with_mean_pooling
from hf_transfer.record import ProblemType
from hf_transfer.strategies.auto import CANDIDATES, DEFAULT_STRATEGY, FOLDS, TrialScores
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.strategies.phases import STRATEGIES
from hf_transfer.strategies.plan import Plan
from hf_transfer.studies import choose
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import Trained
from tests import checkpoints
from tests.conftest import WORDS

IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")
LABELS = ("x", "y", "z")
Digits = Callable[[int], Data]
Pretended = tuple[dict[str, float | UserError], list[str]]


@pytest.fixture(scope="session")
def digits() -> Digits:
    """A function that gives digits of three classes: so many to learn from of each, 100 to judge by."""

    @cache
    def few(examples_per_class: int) -> Data:
        data = load_data(
            DataConfig("builtin:digits", examples_per_class=examples_per_class), IMAGES, seed=0
        )
        splits = {
            name: rows.select(np.flatnonzero(np.array(rows["label"][:]) < 3))
            for name, rows in data.splits.items()
        }
        return replace(
            data,
            splits={"train": splits["train"], "test": splits["test"].select(range(100))},
            labels=LABELS,
        )

    return few


@pytest.fixture
def pictures(tiny_resnet: Path) -> Checkpoint:
    """A tiny ResNet for three classes."""
    return checkpoints.load(str(tiny_resnet), IMAGES, LABELS)


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the test no trial may be made."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("a trial was made")

    monkeypatch.setattr(choose, "run_plan", fail)
    monkeypatch.setattr(choose, "solve_head", fail)


def _choose(
    checkpoint: Checkpoint, data: Data, strategy: str = "auto", seed: int = 0, **changes: Any
) -> Plan:
    """The plan that is chosen; `changes` by the names of flags."""
    transfer = {name: value for name, value in changes.items() if hasattr(TransferConfig, name)}
    others = {name: value for name, value in changes.items() if name not in transfer}
    return choose_plan(
        TransferConfig(strategy=strategy, **transfer),
        checkpoint,
        data,
        _training(seed=seed, **others),
    ).plan


def _training(**changes: Any) -> TrainingConfig:
    training = TrainingConfig(use_cpu=True, disable_tqdm=True, **changes)
    training.output_dir = None  # a run that is kept nowhere
    return training


def _texts(rows: int, problem_type: ProblemType, seed: int = 0) -> Data:
    """Texts of known words whose label is told by how many of them are animals."""
    draw = np.random.default_rng(seed)
    chosen = [draw.choice(WORDS, size=6).tolist() for _ in range(rows)]
    counts = np.array(
        [[words.count(animal) for animal in ("cat", "dog", "bird")] for words in chosen]
    )
    labels: dict[str, list[Any]] = {
        "single_label_classification": counts.argmax(1).tolist(),
        "multi_label_classification": (counts > 0).astype(float).tolist(),
        "regression": (counts.sum(1) + draw.normal(0, 0.1, rows)).tolist(),
    }
    ids = [f"train/{row}" for row in range(rows)]
    train = Dataset.from_dict(
        {"text": list(map(" ".join, chosen)), "label": labels[problem_type], "id": ids}
    )
    if problem_type == "regression":
        train = train.cast_column("label", Value("float32"))
    names = LABELS[:1] if problem_type == "regression" else LABELS
    splits = {"train": train, "test": train}
    return Data(splits, names, Origin("made"), str(seed), TEXTS, problem_type)


# --- a strategy that is asked for by name ---


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.usefixtures("untried")
def test_a_named_strategy_passes_straight_through(
    strategy: str, pictures: Checkpoint, digits: Digits
) -> None:
    plan = _choose(pictures, digits(4), strategy)
    made = make_plan(TransferConfig(strategy=strategy), make_job(pictures, digits(4), _training()))
    assert plan == replace(made, requested=strategy, reasons=plan.reasons, seconds=plan.seconds)
    assert plan.reasons == (f"the strategy {strategy} was asked for by name", *made.reasons)
    assert plan.evidence == ()
    assert 0 <= plan.seconds < 5


# --- auto ---


def test_auto_uses_one_of_its_candidates_and_says_why(pictures: Checkpoint, digits: Digits) -> None:
    plan = _choose(pictures, digits(6), max_steps=10, auto_budget=100.0)
    assert plan.requested == "auto"
    assert plan.strategy in (DEFAULT_STRATEGY, *CANDIDATES)
    assert plan.seconds > 0
    made = make_plan(
        TransferConfig(strategy=plan.strategy), make_job(pictures, digits(6), _training())
    )
    assert plan == replace(
        made, requested="auto", reasons=plan.reasons, evidence=plan.evidence, seconds=plan.seconds
    )
    tried = [fact["strategy"] for fact in plan.evidence]
    assert tried == [DEFAULT_STRATEGY, *CANDIDATES]
    assert plan.evidence[0]["n"] == 18
    for name, reason in zip(tried[1:], plan.reasons, strict=False):
        assert reason.startswith(f"trial of {name}: ")
    assert f"so {plan.strategy} is used" in plan.reasons


def test_auto_decides_alike_for_the_same_seed(pictures: Checkpoint, digits: Digits) -> None:
    plans = [_choose(pictures, digits(4), auto_budget=1.0, max_steps=4) for _ in range(2)]
    found = [
        (plan.strategy, plan.reasons, [replace(fact, seconds=0) for fact in plan.evidence])
        for plan in plans
    ]
    assert found[0] == found[1]
    assert len(found[0][2]) > 1


def test_auto_finds_the_only_plan_that_learns(
    pictures: Checkpoint, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate that destroys the network, only the head that is solved is left."""
    monkeypatch.setattr(choose, "CANDIDATES", ("head",))
    plan = _choose(pictures, digits(8), learning_rate=30.0, max_steps=12)
    assert [fact["strategy"] for fact in plan.evidence] == [DEFAULT_STRATEGY, "head"]
    assert plan.strategy == "head"
    assert "better beyond noise" in plan.reasons[0]
    assert plan.evidence[1].gain > plan.evidence[1].standard_error > 0


def test_what_trials_took_is_known_to_the_same_run_started_again(
    pictures: Checkpoint, digits: Digits, tmp_path: Path
) -> None:
    training = _training(max_steps=4)
    training.output_dir = str(tmp_path)
    first, again = (
        choose_plan(TransferConfig(strategy="auto"), pictures, digits(4), training).plan
        for _ in range(2)
    )
    assert again == replace(first, seconds=again.seconds)
    assert again.seconds == pytest.approx(first.seconds, abs=0.05)
    assert again.seconds > 0.1


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """What every row of a trial scores, or why it fails, by strategy; and the trials that were made."""
    scores: dict[str, float | UserError] = {}
    tried: list[str] = []

    def pretend(strategy: str, asked: Any, fold: np.ndarray, number: int) -> TrialScores:
        tried.append(strategy)
        score = scores.get(strategy, 1.0)
        if isinstance(score, UserError):
            raise score
        held = np.flatnonzero(fold == number)
        return TrialScores(strategy, held, np.full(len(held), score), 0.0)

    monkeypatch.setattr(choose, "_try_plan", pretend)
    return scores, tried


def test_a_plan_is_tried_fold_after_fold_while_there_is_hope(
    pictures: Checkpoint, digits: Digits, pretended: Pretended
) -> None:
    scores, tried = pretended
    scores["top_layers"] = 0.0
    plan = _choose(pictures, digits(8), auto_budget=100.0)
    assert plan.strategy == DEFAULT_STRATEGY
    assert [
        tried.count(name) for name in (DEFAULT_STRATEGY, "head", "top_layers", "contrastive")
    ] == [
        FOLDS,
        2,
        1,
        2,
    ]


def test_where_the_first_plan_fails_the_others_are_left(
    pictures: Checkpoint, digits: Digits, pretended: Pretended
) -> None:
    scores, tried = pretended
    scores[DEFAULT_STRATEGY] = UserError("it broke", "mend it")
    plan = _choose(pictures, digits(8), auto_budget=100.0)
    assert (plan.strategy, tried[:2]) == ("head", [DEFAULT_STRATEGY, "head"])
    assert f"the trial of {DEFAULT_STRATEGY} failed: it broke" in plan.reasons
    assert "so head is used" in plan.reasons


def test_where_every_trial_fails_the_first_says_why(
    pictures: Checkpoint, digits: Digits, pretended: Pretended
) -> None:
    scores, _ = pretended
    scores |= {
        name: UserError(f"{name} broke", "mend it") for name in (DEFAULT_STRATEGY, *CANDIDATES)
    }
    with pytest.raises(UserError, match=f"{DEFAULT_STRATEGY} broke"):
        _choose(pictures, digits(8), auto_budget=100.0)


def test_a_plan_that_answers_what_is_not_finite_has_failed(
    pictures: Checkpoint, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = choose.run_plan

    def spoil(plan: Plan, *others: Any) -> Trained:
        trained = run(plan, *others)
        if plan.strategy == FIRST:
            next(trained.model.parameters()).data.fill_(torch.nan)
        return trained

    monkeypatch.setattr(choose, "run_plan", spoil)
    plan = _choose(pictures, digits(4), auto_budget=100.0, max_steps=3)
    assert (
        f"the trial of {DEFAULT_STRATEGY} failed: {DEFAULT_STRATEGY} answers what is not finite"
        in plan.reasons
    )
    assert DEFAULT_STRATEGY not in [fact["strategy"] for fact in plan.evidence]


def test_folds_that_the_best_was_not_tried_on_are_not_tried(
    pictures: Checkpoint,
    digits: Digits,
    pretended: Pretended,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, tried = pretended
    scores[DEFAULT_STRATEGY] = 0.0
    monkeypatch.setattr(choose, "_costs", lambda *_: {DEFAULT_STRATEGY: 0.7, "head": 0.01})
    plan = _choose(pictures, digits(8), auto_budget=1.0)
    assert (plan.strategy, tried) == ("head", [DEFAULT_STRATEGY, "head"])


@pytest.mark.parametrize("examples_per_class", [1, 2])
@pytest.mark.usefixtures("untried")
def test_with_few_labels_a_class_auto_tries_nothing_and_says_why(
    examples_per_class: int, pictures: Checkpoint, digits: Digits
) -> None:
    plan = _choose(pictures, digits(examples_per_class))
    assert plan.strategy == DEFAULT_STRATEGY
    assert plan.reasons == (
        f"{DEFAULT_STRATEGY}, since most examples are of labels with fewer than 3, too few for trials",
    )
    assert plan.evidence == ()


def test_three_labels_a_class_are_enough_to_try(pictures: Checkpoint, digits: Digits) -> None:
    plan = _choose(pictures, digits(3), auto_budget=3.0, max_steps=3)
    assert plan.evidence[0].n == 9


def test_the_budget_ends_the_trials_and_the_plan_says_so(
    pictures: Checkpoint,
    digits: Digits,
    pretended: Pretended,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, tried = pretended
    monkeypatch.setattr(
        choose, "_costs", lambda *_: {DEFAULT_STRATEGY: 0.5, "head": 0.25, "top_layers": 0.2}
    )
    plan = _choose(pictures, digits(4), auto_budget=0.75)
    assert tried == [DEFAULT_STRATEGY, "head"]
    assert plan.reasons[-2:] == (
        f"--auto_budget 0.75 left no time for more trials of {DEFAULT_STRATEGY}",
        "--auto_budget 0.75 left no time for trials of top_layers",
    )


def test_a_budget_of_exactly_one_trial_is_spent(
    pictures: Checkpoint,
    digits: Digits,
    pretended: Pretended,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "_costs", lambda *_: {DEFAULT_STRATEGY: 0.7, "head": 0.1})
    _choose(pictures, digits(4), auto_budget=0.7)
    assert pretended[1] == [DEFAULT_STRATEGY]


@pytest.mark.usefixtures("untried")
def test_without_time_for_trials_auto_uses_the_first_and_says_so(
    pictures: Checkpoint, digits: Digits
) -> None:
    plan = _choose(pictures, digits(4), auto_budget=1e-9)
    assert (plan.strategy, plan.evidence) == (DEFAULT_STRATEGY, ())
    assert plan.reasons == (
        f"{DEFAULT_STRATEGY}, since --auto_budget 1e-09 leaves no time for trials",
    )


def test_a_trial_costs_what_it_takes_beside_a_fine_tuning_of_everything(
    pictures: Checkpoint, digits: Digits
) -> None:
    asked = choose.Asked(TransferConfig(strategy="auto"), pictures, digits(4), _training())
    costs = choose._costs(asked, np.arange(12) % 3)
    assert list(costs) == [DEFAULT_STRATEGY, *CANDIDATES]
    # Two thirds of the rows in as many steps: a head of one pass, and about as much as everything.
    assert 0.6 < costs["head_then_full"] < 1.1
    assert 0 < costs["head"] < 0.1
    assert 0 < costs["top_layers"] < 0.8 * costs["head_then_full"]


def test_trials_see_training_rows_alone_and_each_is_held_out_once(
    pictures: Checkpoint, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, judged = [], []
    run, judge = choose.run_plan, choose.predict

    def look_at_run(plan: Plan, checkpoint: Checkpoint, data: Data, *others: Any) -> Any:
        learned.append((plan.strategy, set(data.train["id"][:]), set(data.splits)))
        return run(plan, checkpoint, data, *others)

    def look_at_predict(predictor: Any, rows: Dataset, *others: Any) -> Any:
        judged.append(set(rows["id"][:]))
        return judge(predictor, rows, *others)

    monkeypatch.setattr(choose, "run_plan", look_at_run)
    monkeypatch.setattr(choose, "predict", look_at_predict)
    data = digits(4)
    # Of another shape than rows are: whoever reads them fails.
    unreadable = Dataset.from_dict({"nothing": [0] * 30})
    closed = replace(
        data, splits={"train": data.train, "validation": unreadable, "test": unreadable}
    )
    plan = _choose(pictures, closed, auto_budget=3.0, max_steps=3)
    every = set(data.train["id"][:])
    assert len(learned) >= FOLDS + 1
    for (_, kept, splits), held in zip(learned, judged, strict=True):
        assert (kept | held, kept & held) == (every, set())
        assert splits == {"train", "test"}  # the fold that is held out
    of_first = [
        held
        for (strategy, _, _), held in zip(learned, judged, strict=True)
        if strategy == DEFAULT_STRATEGY
    ]
    assert sum(map(len, of_first)) == len(set.union(*of_first)) == len(every)
    assert plan.evidence[0].n == len(every)


def test_the_given_checkpoint_and_arguments_stay_as_they_were(
    pictures: Checkpoint, digits: Digits
) -> None:
    before = {name: tensor.clone() for name, tensor in pictures.model.state_dict().items()}
    training = _training(early_stopping_patience=3, wise_ft=True, average_last=0.5, max_steps=3)
    said = training.to_dict()
    data = replace(digits(4), splits={**digits(4).splits, "validation": digits(4).test})
    assert choose_plan(
        TransferConfig(strategy="auto", auto_budget=3.0), pictures, data, training
    ).plan.evidence
    assert len(before) > 20
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in pictures.model.state_dict().items()
    )
    assert all(parameter.requires_grad for parameter in pictures.model.parameters())
    assert training.to_dict() == said


def test_trials_leave_nothing_in_the_store_of_the_user(
    pictures: Checkpoint, digits: Digits, tmp_path: Path
) -> None:
    assert _choose(
        pictures, digits(4), auto_budget=3.0, max_steps=3, cache_dir=str(tmp_path / "store")
    ).evidence
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_without_one_class_a_row_contrastive_is_not_tried(
    tiny_bert: Path, problem_type: ProblemType
) -> None:
    data = _texts(30, problem_type)
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels, problem_type=problem_type)
    plan = _choose(checkpoint, data, pooling="own", max_steps=2)
    assert {fact["strategy"] for fact in plan.evidence} == {"head", "top_layers", "head_then_full"}
    assert plan.strategy in (DEFAULT_STRATEGY, *CANDIDATES)
    assert all(np.isfinite(fact["score"]) for fact in plan.evidence)


# --- the pooling ---


def _held_out_loss(checkpoint: Checkpoint, data: Data) -> float:
    """Of a head that is solved on what the output layer reads of all rows in one batch."""
    model = checkpoint.model.eval()
    encoder = make_encoder(checkpoint.task, checkpoint.processor, model.config)
    batch = encoder.collate(list(encoder.rows(data.train)))
    labels = batch.pop("labels").numpy()
    with torch.no_grad(), headless(model):
        features = read_logits(model(**batch)).numpy()
    return log_loss(
        labels,
        solve_head(ProbeData(features, labels, data.problem_type, len(data.labels))).out_of_fold,
    )


@pytest.mark.parametrize("first_token_tells", [False, True])
def test_the_pooling_with_the_lower_held_out_loss_is_used(
    tiny_bert: Path, first_token_tells: bool
) -> None:
    data = _texts(90, "single_label_classification")
    if first_token_tells:  # by one word, which the first token sees and is lost in the mean of many
        animals = [("cat", "dog", "bird")[label] for label in data.train["label"][:]]
        around = np.random.default_rng(1).choice(
            ("red", "blue", "the", "a"), size=(len(animals), 20)
        )
        texts = [
            " ".join((animal, *words))
            for animal, words in zip(animals, around.tolist(), strict=True)
        ]
        data = replace(
            data, splits={"train": data.train.remove_columns("text").add_column("text", texts)}
        )
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
    losses = {
        "own": _held_out_loss(checkpoint, data),
        "mean": _held_out_loss(with_mean_pooling(checkpoint), data),
    }
    plan = _choose(checkpoint, data, "full")
    assert plan.pooling == min(losses, key=losses.__getitem__)
    assert (
        f"{losses['mean']:.3g} with the mean, {losses['own']:.3g} with the class's own pooling"
        in plan.reasons[-1]
    )


def test_a_mean_that_was_asked_for_is_used_untried(tiny_bert: Path, untried: None) -> None:
    data = _texts(30, "single_label_classification")
    plan = _choose(
        checkpoints.load(str(tiny_bert), TEXTS, data.labels), data, "full", pooling="mean"
    )
    assert plan.pooling == "mean"
    assert "the head reads the mean over all tokens, as was asked" in plan.reasons


def test_a_mean_that_is_not_possible_is_warned_of_and_its_own_stays(
    pictures: Checkpoint, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    plan = _choose(pictures, digits(4), "full", pooling="mean")
    assert plan.pooling == "own"
    assert "--pooling mean: ResNetForImageClassification reads pixel_values" in caplog.text
    assert "its own pooling stays" in caplog.text
    assert any(
        "ResNetForImageClassification reads pixel_values" in reason for reason in plan.reasons
    )


@pytest.mark.usefixtures("untried")
def test_pictures_and_decoders_keep_their_own_pooling_without_a_word(
    pictures: Checkpoint, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    assert _choose(pictures, digits(4), "full", pooling="auto").pooling == "own"
    assert not caplog.records


@pytest.mark.parametrize(
    ("strategy", "flags"),
    [("scratch", {}), ("lora", {"keep_adapter": True}), ("full", {"pooling": "own"})],
)
@pytest.mark.usefixtures("untried")
def test_where_the_pooling_is_bound_nothing_is_tried(
    tiny_bert: Path, strategy: str, flags: dict[str, Any]
) -> None:
    data = _texts(30, "single_label_classification")
    plan = _choose(checkpoints.load(str(tiny_bert), TEXTS, data.labels), data, strategy, **flags)
    assert plan.pooling == "own"
    assert plan.reasons == (f"the strategy {strategy} was asked for by name",)


@pytest.mark.usefixtures("untried")
def test_a_head_that_was_kept_keeps_what_it_reads(tiny_bert: Path) -> None:
    data = _texts(30, "single_label_classification")
    names = tuple(f"LABEL_{number}" for number in range(4))
    data = replace(data, labels=names)
    assert (
        _choose(
            checkpoints.load(str(tiny_bert), TEXTS, names, keep_head=True), data, "full"
        ).pooling
        == "own"
    )


def test_with_one_label_a_class_the_mean_is_used_by_what_others_found(tiny_bert: Path) -> None:
    data = _texts(60, "single_label_classification")
    labels = np.array(data.train["label"][:])
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(3)]
    data = replace(data, splits={"train": data.train.select(first)})
    plan = _choose(checkpoints.load(str(tiny_bert), TEXTS, data.labels), data, "head")
    assert plan.pooling == "mean"
    assert "Reimers and Gurevych 2019" in plan.reasons[-1]


@pytest.mark.parametrize("strategy", ["full", "auto"])
def test_choosing_says_nothing_of_flags_that_a_solved_head_ignores(
    strategy: str, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _texts(30, "single_label_classification")
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
    caplog.set_level("INFO", logger="hf_transfer")
    caplog.clear()
    _choose(checkpoint, data, strategy, learning_rate=1e-3, auto_budget=1e-9)
    assert "plays no part" not in caplog.text


def test_the_trials_of_auto_are_made_with_the_pooling_that_was_chosen(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, run = [], choose.run_plan

    def look(plan: Plan, checkpoint: Checkpoint, *others: Any) -> Any:
        fixed.append(len(checkpoint.fixed))
        return run(plan, checkpoint, *others)

    monkeypatch.setattr(choose, "run_plan", look)
    data = _texts(24, "single_label_classification")
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
    plan = _choose(checkpoint, data, pooling="mean", auto_budget=10.0, max_steps=2)
    assert len(fixed) >= FOLDS
    assert set(fixed) == {len(with_mean_pooling(checkpoint).fixed)}
    assert plan.pooling == "mean"
    assert checkpoint.fixed == ()


def test_flags_that_the_chosen_plan_has_no_use_for_are_named(
    pictures: Checkpoint, digits: Digits, pretended: Pretended
) -> None:
    scores, _ = pretended
    scores |= dict.fromkeys((DEFAULT_STRATEGY, *CANDIDATES), 0.0) | {"head": 1.0}
    plan = _choose(pictures, digits(4), auto_budget=100.0, layer_decay=0.8)
    assert plan.strategy == "head"
    assert plan.reasons[-1] == "--layer_decay plays no part in head"
