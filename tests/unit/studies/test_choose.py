from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Value

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.data import DataConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import Data, Origin, load_data
from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import log_loss
from hf_transfer.job import make_job
from hf_transfer.linear_probe.solve import ProbeData, solve_head
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import headless, read_logits
from hf_transfer.models.pooling import mean_pooled, with_mean_pooling
from hf_transfer.record import ProblemType
from hf_transfer.strategies.auto import (
    CANDIDATES,
    DEFAULT_STRATEGY,
    FOLDS,
    TrialScores,
    select_best,
)
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.strategies.phases import STRATEGIES
from hf_transfer.strategies.plan import Choice
from hf_transfer.studies.choose import choose_plan
from hf_transfer.studies.trials import run_trials
from hf_transfer.tasks import find_task
from tests import checkpoints
from tests.conftest import WORDS

IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")
LABELS = ("x", "y", "z")
Digits = Callable[[int], Data]


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
def images(tiny_resnet: Path) -> Checkpoint:
    """A tiny ResNet for three classes."""
    return checkpoints.load(str(tiny_resnet), IMAGES, LABELS)


def _choose(
    checkpoint: Checkpoint, data: Data, strategy: str = "auto", seed: int = 0, **changes: Any
) -> Choice:
    """What is chosen; `changes` by the names of flags."""
    transfer = {name: value for name, value in changes.items() if hasattr(TransferConfig, name)}
    cache = {name: value for name, value in changes.items() if hasattr(CacheConfig, name)}
    others = {name: changes[name] for name in changes.keys() - transfer.keys() - cache.keys()}
    config = TransferConfig(strategy=strategy, **transfer)
    training = _training(seed=seed, **others)
    return choose_plan(config, checkpoint, data, training, CacheConfig(**cache))


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


# --- a strategy that is named ---


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_named_strategy_passes_straight_through(
    strategy: str, images: Checkpoint, digits: Digits
) -> None:
    choice = _choose(images, digits(4), strategy)
    job = make_job(images, digits(4), _training())
    assert choice.plan == make_plan(TransferConfig(strategy=strategy), job)
    why = "the default" if strategy == "head_then_full" else "as requested"
    assert choice.reasons == (f"the strategy is {strategy}, {why}",)
    assert (choice.requested, choice.trials) == (strategy, ())
    assert 0 <= choice.seconds < 5


# --- auto ---


def test_auto_uses_one_of_its_candidates_and_says_why(images: Checkpoint, digits: Digits) -> None:
    choice = _choose(images, digits(6), max_steps=10, auto_budget=100.0)
    plan = choice.plan
    assert choice.requested == "auto"
    assert plan.strategy in (DEFAULT_STRATEGY, *CANDIDATES)
    assert choice.seconds > 0
    job = make_job(images, digits(6), _training())
    assert plan == make_plan(TransferConfig(strategy=plan.strategy), job)
    tried = [trial.strategy for trial in choice.trials]
    assert tried == [DEFAULT_STRATEGY, *CANDIDATES]
    assert choice.trials[0].n == 18
    for name, reason in zip(tried[1:], choice.reasons, strict=False):
        assert reason.startswith(f"trial of {name}: ")
    assert f"so {plan.strategy} is used" in choice.reasons


def test_auto_decides_alike_for_the_same_seed(images: Checkpoint, digits: Digits) -> None:
    choices = [_choose(images, digits(4), auto_budget=1.0, max_steps=4) for _ in range(2)]
    found = [
        (choice.plan, choice.reasons, [replace(trial, seconds=0) for trial in choice.trials])
        for choice in choices
    ]
    assert found[0] == found[1]
    assert len(found[0][2]) > 1


def test_auto_finds_the_only_plan_that_learns(images: Checkpoint, digits: Digits) -> None:
    """At a learning rate that destroys the network, only the head in closed form is left."""
    choice = _choose(images, digits(8), learning_rate=30.0, max_steps=12)
    assert [trial.strategy for trial in choice.trials[:2]] == [DEFAULT_STRATEGY, "head"]
    assert choice.plan.strategy == "head"
    assert "better beyond noise" in choice.reasons[0]
    assert choice.trials[1].gain > choice.trials[1].standard_error > 0


def test_the_trials_are_known_to_the_same_run_started_again(
    images: Checkpoint, digits: Digits, tmp_path: Path
) -> None:
    training = _training(max_steps=4)
    training.output_dir = str(tmp_path)
    auto = TransferConfig(strategy="auto")
    first, again = (choose_plan(auto, images, digits(4), training) for _ in range(2))
    assert again == replace(first, seconds=again.seconds)
    assert again.seconds == pytest.approx(first.seconds, abs=0.05)
    assert again.seconds > 0.1


def test_a_learning_rate_without_a_finite_loss_fails_its_trial_only(
    images: Checkpoint, digits: Digits
) -> None:
    choice = _choose(images, digits(4), auto_budget=100.0, max_steps=3, learning_rate=1e30)
    assert any(f"the trial of {DEFAULT_STRATEGY} failed:" in each for each in choice.reasons)
    assert choice.plan.strategy == "head"
    assert DEFAULT_STRATEGY not in [trial.strategy for trial in choice.trials]


COSTS = dict.fromkeys((DEFAULT_STRATEGY, *CANDIDATES), 0.1)


@dataclass
class Attempts:
    """Trials of 8 rows a fold, each row with the score of its strategy, or that fail."""

    scores: dict[str, float | UserError] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)

    def __call__(self, strategy: str, number: int) -> TrialScores:
        self.tried.append(strategy)
        score = self.scores.get(strategy, 1.0)
        if isinstance(score, UserError):
            raise score
        rows = np.arange(24)[number::FOLDS]
        return TrialScores(strategy, rows, np.full(len(rows), score), 0.0)


def test_a_plan_is_tried_fold_after_fold_while_there_is_hope() -> None:
    attempts = Attempts({"top_layers": 0.0})
    trials, left_out = run_trials(COSTS, 100.0, attempts)
    assert select_best(trials).strategy == DEFAULT_STRATEGY
    assert Counter(attempts.tried) == {
        DEFAULT_STRATEGY: FOLDS,
        "head": 2,
        "top_layers": 1,
        "contrastive": 2,
    }
    assert left_out == ()


def test_the_bar_moves_on_after_each_fold_and_over_those_that_are_left_out() -> None:
    advanced: list[int] = []
    run_trials(COSTS, 100.0, Attempts({"top_layers": 0.0}), advanced.append)
    assert sum(advanced) == FOLDS * len(COSTS)
    assert advanced[:FOLDS] == [1] * FOLDS


def test_where_the_first_plan_fails_the_others_are_left() -> None:
    attempts = Attempts({DEFAULT_STRATEGY: UserError("it broke", "fix it")})
    trials, left_out = run_trials(COSTS, 100.0, attempts)
    assert attempts.tried[:2] == [DEFAULT_STRATEGY, "head"]
    assert select_best(trials).strategy == "head"
    assert left_out == (f"the trial of {DEFAULT_STRATEGY} failed: it broke",)


def test_where_every_trial_fails_the_first_says_why() -> None:
    errors = {name: UserError(f"{name} broke", "fix it") for name in COSTS}
    with pytest.raises(UserError, match=f"{DEFAULT_STRATEGY} broke"):
        run_trials(COSTS, 100.0, Attempts(errors))


def test_folds_that_the_best_was_not_tried_on_are_not_tried() -> None:
    attempts = Attempts({DEFAULT_STRATEGY: 0.0})
    trials, _ = run_trials({DEFAULT_STRATEGY: 0.7, "head": 0.01}, 1.0, attempts)
    assert select_best(trials).strategy == "head"
    assert attempts.tried == [DEFAULT_STRATEGY, "head"]


def test_the_budget_ends_the_trials_and_the_reasons_say_so() -> None:
    attempts = Attempts()
    costs = {DEFAULT_STRATEGY: 0.5, "head": 0.25, "top_layers": 0.2}
    _, left_out = run_trials(costs, 0.75, attempts)
    assert attempts.tried == [DEFAULT_STRATEGY, "head"]
    assert left_out == (
        f"--auto_budget 0.75 left no time for more trials of {DEFAULT_STRATEGY}",
        "--auto_budget 0.75 left no time for trials of top_layers",
    )


def test_a_budget_of_exactly_one_trial_is_spent() -> None:
    attempts = Attempts()
    run_trials({DEFAULT_STRATEGY: 0.7, "head": 0.1}, 0.7, attempts)
    assert attempts.tried == [DEFAULT_STRATEGY]


@pytest.mark.parametrize("examples_per_class", [1, 2])
def test_with_few_labels_per_class_auto_tries_nothing_and_says_why(
    examples_per_class: int, images: Checkpoint, digits: Digits
) -> None:
    choice = _choose(images, digits(examples_per_class))
    assert choice.plan.strategy == DEFAULT_STRATEGY
    assert choice.reasons == (
        f"{DEFAULT_STRATEGY}, since most examples are of labels with fewer than 3, too few for "
        "trials",
    )
    assert choice.trials == ()


def test_three_labels_per_class_are_enough_to_try(images: Checkpoint, digits: Digits) -> None:
    assert _choose(images, digits(3), auto_budget=3.0, max_steps=3).trials[0].n == 9


def test_without_time_for_trials_auto_uses_the_default_and_says_so(
    images: Checkpoint, digits: Digits
) -> None:
    choice = _choose(images, digits(4), auto_budget=1e-9)
    assert (choice.plan.strategy, choice.trials) == (DEFAULT_STRATEGY, ())
    assert choice.reasons == (
        f"{DEFAULT_STRATEGY}, since --auto_budget 1e-09 leaves no time for trials",
    )


def test_trials_read_training_rows_alone_and_each_is_held_out_once(
    images: Checkpoint, digits: Digits
) -> None:
    data = digits(4)
    # Of another shape than rows are: whoever reads them fails.
    unreadable = Dataset.from_dict({"nothing": [0] * 30})
    splits = {"train": data.train, "validation": unreadable, "test": unreadable}
    choice = _choose(images, replace(data, splits=splits), auto_budget=3.0, max_steps=3)
    assert choice.trials[0].n == len(data.train)


def test_the_given_checkpoint_and_arguments_stay_as_they_were(
    images: Checkpoint, digits: Digits
) -> None:
    before = {name: tensor.clone() for name, tensor in images.model.state_dict().items()}
    training = _training(early_stopping_patience=3, wise_ft=True, average_last=0.5, max_steps=3)
    arguments = training.to_dict()
    data = replace(digits(4), splits={**digits(4).splits, "validation": digits(4).test})
    auto = TransferConfig(strategy="auto", auto_budget=3.0)
    assert choose_plan(auto, images, data, training).trials
    assert len(before) > 20
    after = images.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert all(parameter.requires_grad for parameter in images.model.parameters())
    assert training.to_dict() == arguments


def test_trials_leave_nothing_in_the_store_of_the_user(
    images: Checkpoint, digits: Digits, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    assert _choose(images, digits(4), auto_budget=3.0, max_steps=3, cache_dir=store).trials
    assert not list(tmp_path.rglob("*.*"))


def _of_groups(rows: int, groups: int) -> Data:
    """The texts of a group are the same one, and so are their classes, which are drawn at random."""
    data = _texts(groups, "single_label_classification")
    own = np.arange(rows) % groups
    drawn = np.random.default_rng(0).permutation(np.arange(groups) % 2)
    train = data.train.remove_columns(["id", "label"]).select(own)
    for name, column in {
        "id": [f"train/{row}" for row in range(rows)],
        "label": drawn[own].tolist(),
        "group": list(map(str, own)),
    }.items():
        train = train.add_column(name, column)
    return replace(data, splits={"train": train, "test": train}, labels=("no", "yes"))


def test_a_group_is_in_one_fold_of_the_trials(tiny_bert: Path) -> None:
    data = _of_groups(rows=96, groups=12)
    without = {name: rows.remove_columns("group") for name, rows in data.splits.items()}
    scores = []
    for each in (data, replace(data, splits=without)):
        checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
        choice = _choose(checkpoint, each, pooling="own", max_steps=2)
        scores.append(next(trial.score for trial in choice.trials if trial.strategy == "head"))
    assert scores[0] < 0.7
    assert scores[1] > 0.9  # where the same texts are on both sides


def test_two_groups_are_too_few_for_trials_and_auto_says_so(tiny_bert: Path) -> None:
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, ("no", "yes"))
    choice = _choose(checkpoint, _of_groups(rows=20, groups=2), pooling="own")
    assert choice.trials == ()
    assert f"{DEFAULT_STRATEGY}, since 2 groups are too few for trials" in choice.reasons


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_without_one_class_per_row_contrastive_is_not_tried(
    tiny_bert: Path, problem_type: ProblemType
) -> None:
    data = _texts(30, problem_type)
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels, problem_type=problem_type)
    choice = _choose(checkpoint, data, pooling="own", max_steps=2)
    tried = {trial.strategy for trial in choice.trials}
    assert tried == {"head", "top_layers", "head_then_full"}
    assert choice.plan.strategy in tried
    assert all(np.isfinite(trial.score) for trial in choice.trials)


# --- the pooling ---


def _held_out_loss(checkpoint: Checkpoint, data: Data) -> float:
    """Of a head that is solved on what the output layer reads of all rows in one batch."""
    model = checkpoint.model.eval()
    encoder = make_encoder(checkpoint.task, checkpoint.processor, model.config)
    batch = encoder.batch(list(encoder.rows(data.train)))
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
    choice = _choose(checkpoint, data, "full")
    assert choice.plan.pooling == min(losses, key=losses.__getitem__)
    assert (
        f"{losses['mean']:.3g} with the mean, {losses['own']:.3g} with the class's own pooling"
        in choice.reasons[-1]
    )


def test_a_requested_mean_is_used_untried(tiny_bert: Path) -> None:
    data = _texts(30, "single_label_classification")
    choice = _choose(
        checkpoints.load(str(tiny_bert), TEXTS, data.labels), data, "full", pooling="mean"
    )
    assert choice.plan.pooling == "mean"
    assert "the head reads the mean over all tokens, as requested" in choice.reasons


def test_a_mean_that_is_not_possible_is_warned_of_and_its_own_stays(
    images: Checkpoint, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    choice = _choose(images, digits(4), "full", pooling="mean")
    assert choice.plan.pooling == "own"
    assert "--pooling mean: ResNetForImageClassification reads pixel_values" in caplog.text
    assert "its own pooling stays" in caplog.text
    assert any(
        "ResNetForImageClassification reads pixel_values" in reason for reason in choice.reasons
    )


def test_images_and_decoders_keep_their_own_pooling_without_a_word(
    images: Checkpoint, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    assert _choose(images, digits(4), "full", pooling="auto").plan.pooling == "own"
    assert not caplog.records


@pytest.mark.parametrize(
    ("strategy", "flags", "reasons"),
    [
        ("scratch", {}, ["from scratch the class is taken as it is"]),
        (
            "lora",
            {"keep_adapter": True},
            ["the base model of an adapter has no layer for the mean"],
        ),
        ("full", {"pooling": "own"}, []),
    ],
)
def test_where_the_pooling_is_bound_nothing_is_tried(
    tiny_bert: Path, strategy: str, flags: dict[str, Any], reasons: list[str]
) -> None:
    data = _texts(30, "single_label_classification")
    choice = _choose(checkpoints.load(str(tiny_bert), TEXTS, data.labels), data, strategy, **flags)
    assert choice.plan.pooling == "own"
    assert choice.reasons == (
        f"the strategy is {strategy}, as requested",
        *(f"the head reads what the class pools: {reason}" for reason in reasons),
    )


def test_a_head_that_was_kept_keeps_what_it_reads(tiny_bert: Path) -> None:
    data = _texts(30, "single_label_classification")
    names = tuple(f"LABEL_{number}" for number in range(4))
    data = replace(data, labels=names)
    assert (
        _choose(
            checkpoints.load(str(tiny_bert), TEXTS, names, keep_head=True), data, "full"
        ).plan.pooling
        == "own"
    )


def test_with_one_label_a_class_the_mean_is_used_by_what_others_found(tiny_bert: Path) -> None:
    data = _texts(60, "single_label_classification")
    labels = np.array(data.train["label"][:])
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(3)]
    data = replace(data, splits={"train": data.train.select(first)})
    choice = _choose(checkpoints.load(str(tiny_bert), TEXTS, data.labels), data, "head")
    assert choice.plan.pooling == "mean"
    assert "Reimers and Gurevych 2019" in choice.reasons[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-3),
        ("num_train_epochs", 3.0),
        ("max_steps", 7),
        ("per_device_train_batch_size", 8),
        ("warmup_steps", 5.0),
        ("weight_decay", 0.1),
        ("optim", "sgd"),
        ("lr_scheduler_type", "cosine"),
        ("gradient_accumulation_steps", 2),
        ("max_grad_norm", 0.5),
        ("adam_beta1", 0.8),
        ("report_to", ["tensorboard"]),
    ],
)
def test_flags_for_steps_are_named_where_the_head_is_solved(
    name: str, value: object, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _texts(30, "single_label_classification")
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
    caplog.clear()
    _choose(checkpoint, data, "head", pooling="own", **{name: value})
    (warning,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert warning.getMessage().endswith(f"without steps: no effect of --{name}")


def test_no_flag_is_named_where_none_was_given(
    tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _texts(30, "single_label_classification")
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
    _choose(checkpoint, data, "head", pooling="own")
    assert "no effect" not in caplog.text


@pytest.mark.parametrize("strategy", ["full", "auto"])
def test_choosing_says_nothing_of_flags_that_a_solved_head_ignores(
    strategy: str, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _texts(30, "single_label_classification")
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
    caplog.set_level("INFO", logger="hf_transfer")
    caplog.clear()
    _choose(checkpoint, data, strategy, learning_rate=1e-3, auto_budget=1e-9)
    assert "no effect" not in caplog.text


def test_the_trials_of_auto_are_made_with_the_pooling_that_was_chosen(tiny_bert: Path) -> None:
    data = _texts(24, "single_label_classification")
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
    choice = _choose(checkpoint, data, pooling="mean", auto_budget=10.0, max_steps=2)
    assert choice.plan.pooling == "mean"
    alone = _choose(mean_pooled(checkpoint), data, pooling="own", auto_budget=10.0, max_steps=2)
    timeless = [replace(trial, seconds=0) for trial in choice.trials]
    assert timeless == [replace(trial, seconds=0) for trial in alone.trials]
    assert len(timeless) > 1
    assert checkpoint.fixed == ()


def test_flags_that_the_chosen_plan_does_not_use_are_named(
    images: Checkpoint, digits: Digits
) -> None:
    flags = {"learning_rate": 30.0, "max_steps": 12, "layer_decay": 0.8}
    choice = _choose(images, digits(8), auto_budget=100.0, **flags)
    assert choice.plan.strategy == "head"
    assert choice.reasons[-1] == "--layer_decay is not used by head"
