from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from datasets import Dataset
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    ResNetConfig,
    SwiftFormerConfig,
    ViTConfig,
    set_seed,
)

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import Strategy, TransferConfig
from hf_transfer.data.sources import Data, Origin
from hf_transfer.errors import UserError
from hf_transfer.job import Job
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import parameter_count
from hf_transfer.models.pooling import with_mean_pooling
from hf_transfer.record import ProblemType
from hf_transfer.strategies import defaults
from hf_transfer.strategies.make_plan import make_plan, why_in_steps
from hf_transfer.strategies.phases import STRATEGIES
from hf_transfer.strategies.plan import Phase, Plan, Schedule, learning_rates
from hf_transfer.tasks import find_task
from tests import checkpoints

SCHEDULE = Schedule(epochs=12, trainable_layers=2, lora_rank=4)
IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")
OLD, LABELS = ("one", "other"), ("x", "y", "z")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
# Four layers each.
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZES, vocab_size=60, max_position_embeddings=40),
    "vit": ViTConfig(**SIZES, image_size=16, patch_size=8),
    "resnet": ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "gpt2": GPT2Config(n_embd=16, n_layer=4, n_head=2, vocab_size=60, pad_token_id=1),
}

ALL = ("embeddings", "layer 1", "layer 2", "layer 3", "layer 4")
Rates = dict[str, float]  # by stage
HEAD_ALONE = ("head", {"head": 10.0})


def _behind_head(layers: int) -> Rates:
    return dict.fromkeys((*ALL[5 - layers :], "head"), 0.5)


# What trains in which phase, at which multiple of the learning rate of the plan.
TABLE: dict[str, list[tuple[str, Rates]]] = {
    "head": [("head", {"head": 1.0})],
    "top_layers": [("top_layers", {"layer 4": 1.0, "head": 10.0})],
    "full": [("full", dict.fromkeys(ALL, 1.0) | {"head": 10.0})],
    "gradual": [
        HEAD_ALONE,
        ("top layer", _behind_head(1)),
        ("top 2 layers", _behind_head(2)),
        ("top 3 layers", _behind_head(3)),
        ("full", _behind_head(5)),
    ],
    "head_then_full": [HEAD_ALONE, ("full", _behind_head(5))],
    "contrastive": [("contrastive", dict.fromkeys(ALL, 1.0)), HEAD_ALONE],
    "lora": [("lora", dict.fromkeys((*ALL, "head"), 1.0))],
    "scratch": [("scratch", dict.fromkeys((*ALL, "head"), 1.0))],
}

Load = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A function that loads a tiny model by the name of its architecture."""
    folder = tmp_path_factory.mktemp("plans")
    set_seed(0)
    for name, config in CONFIGS.items():
        kind = (
            AutoModelForImageClassification
            if name in ("vit", "resnet")
            else AutoModelForSequenceClassification
        )
        config.id2label = dict(enumerate(OLD))
        kind.from_config(config).save_pretrained(folder / name)

    def load_one(name: str, labels: tuple[str, ...] = LABELS, **options: Any) -> Checkpoint:
        return checkpoints.load(
            str(folder / name), IMAGES if name in ("vit", "resnet") else TEXTS, labels, **options
        )

    return load_one


def _plan(checkpoint: Checkpoint, strategy: str, data: Data | None = None, **changes: Any) -> Plan:
    """The plan of a strategy; `changes` by the names of flags."""
    transfer = {name: value for name, value in changes.items() if hasattr(TransferConfig, name)}
    others = {name: value for name, value in changes.items() if name not in transfer}
    config = TransferConfig(strategy=strategy, **transfer)
    return make_plan(config, _job(checkpoint, data, **others))


def _job(checkpoint: Checkpoint, data: Data | None = None, **flags: Any) -> Job:
    """A job without an encoder: a plan encodes no rows."""
    training = TrainingConfig(output_dir="nowhere", use_cpu=True, **flags)
    encoder: Any = None
    return Job(checkpoint, data or _data(), encoder, training)


def _data(rows: int = 40, problem_type: ProblemType = "single_label_classification") -> Data:
    """Training rows, of which a plan reads the number alone."""
    return Data(
        {"train": Dataset.from_dict({"label": [0] * rows})},
        LABELS,
        Origin("made"),
        "",
        TEXTS,
        problem_type,
    )


def _by_stage(phase: Phase, plan: Plan, checkpoint: Checkpoint) -> Rates:
    """The learning rate of each stage that trains: that of all its parameters."""
    layers, found = checkpoint.layers, dict[str, set[float]]()
    rates = learning_rates(phase, plan, layers, checkpoint.fixed)
    for name, rate in rates.items():
        found.setdefault(layers.stages[layers.depth_of(name)], set()).add(rate)
    of_stages = {name for name, depth in layers.depths.items() if layers.stages[depth] in found}
    assert set(rates) == of_stages - set(checkpoint.fixed)
    return {stage: rate for stage, (rate,) in found.items()}


# --- strategies alone ---


def test_every_value_of_the_flag_is_a_strategy() -> None:
    assert {*STRATEGIES, "auto"} == set(get_args(Strategy))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_phases_in_steps_share_the_requested_epochs(name: str) -> None:
    in_steps = STRATEGIES[name](replace(SCHEDULE, head_solver="trainer"))
    assert sum(phase.epochs for phase in in_steps) == pytest.approx(12)
    solved = STRATEGIES[name](SCHEDULE)
    assert sum(phase.epochs for phase in solved if phase.solver == "trainer") in (
        0,
        pytest.approx(12),
    )


def test_a_head_alone_is_solved_where_it_can_be() -> None:
    phases = [phase for name in STRATEGIES for phase in STRATEGIES[name](SCHEDULE)]
    assert len(phases) > len(STRATEGIES)
    assert all((phase.solver == "convex") == (phase.trainable == ("head",)) for phase in phases)


@pytest.mark.parametrize("name", ["head_then_full", "gradual"])
def test_a_head_before_more_is_solved_with_a_larger_penalty_than_the_last_one(name: str) -> None:
    assert STRATEGIES[name](SCHEDULE)[0].penalty > 1
    assert (
        STRATEGIES["head"](SCHEDULE)[-1].penalty
        == STRATEGIES["contrastive"](SCHEDULE)[-1].penalty
        == 1
    )


def test_lora_carries_its_rank() -> None:
    (phase,) = STRATEGIES["lora"](SCHEDULE)
    assert (phase.adapter, phase.adapter_rank) == ("lora", 4)


def test_only_the_first_phase_of_contrastive_has_another_loss() -> None:
    losses = [phase.loss for name in STRATEGIES for phase in STRATEGIES[name](SCHEDULE)]
    assert losses.count("contrastive") == 1
    assert STRATEGIES["contrastive"](SCHEDULE)[0].loss == "contrastive"


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (1, ["head", "full"]),
        (2, ["head", "top layer", "full"]),
        (3, ["head", "top layer", "top 2 layers", "full"]),
        (12, ["head", "top 3 layers", "top 6 layers", "top 9 layers", "full"]),
    ],
)
def test_gradual_thaws_a_quarter_at_a_time_and_no_part_twice(layers: int, names: list[str]) -> None:
    assert [
        phase.name for phase in STRATEGIES["gradual"](replace(SCHEDULE, layers=layers))
    ] == names


# --- what learns, in networks of several kinds ---


@pytest.mark.parametrize("strategy", TABLE)
@pytest.mark.parametrize("name", CONFIGS)
def test_each_strategy_trains_these_stages_at_these_rates(
    load: Load, name: str, strategy: str
) -> None:
    checkpoint = load(name)
    plan = _plan(checkpoint, strategy, learning_rate=2.0)
    found = [(phase.name, _by_stage(phase, plan, checkpoint)) for phase in plan.phases]
    assert found == [
        (phase, {stage: 2.0 * rate for stage, rate in rates.items()})
        for phase, rates in TABLE[strategy]
    ]
    assert plan.init == ("random" if strategy == "scratch" else "pretrained")


def test_the_table_has_a_row_for_every_strategy() -> None:
    assert set(TABLE) == set(STRATEGIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_with_layer_decay_each_layer_learns_at_a_share_of_the_rate_above_it(
    load: Load, name: str
) -> None:
    checkpoint = load(name)
    plan = _plan(checkpoint, "full", learning_rate=1.0, layer_decay=0.5)
    rates = _by_stage(plan.phases[0], plan, checkpoint)
    assert rates.pop("head") == 10.0
    assert rates == {stage: 0.5 ** (4 + 1 - k) for k, stage in enumerate(ALL)}


def test_layer_decay_counts_from_the_head_where_only_some_layers_learn(load: Load) -> None:
    checkpoint = load("bert")
    plan = _plan(checkpoint, "top_layers", learning_rate=1.0, layer_decay=0.5, trainable_layers=2)
    assert _by_stage(plan.phases[0], plan, checkpoint) == {
        "layer 3": 0.25,
        "layer 4": 0.5,
        "head": 10.0,
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_makes_the_mean_never_learns(load: Load, strategy: str) -> None:
    own = load("bert")
    pooled = with_mean_pooling(own)
    plan = _plan(pooled, strategy, learning_rate=2.0)
    assert len(pooled.fixed) > 10
    for phase in plan.phases:
        learning = learning_rates(phase, plan, pooled.layers, pooled.fixed)
        assert learning
        assert not set(learning) & set(pooled.fixed)
    of_own = _plan(own, strategy, learning_rate=2.0)
    rates = [_by_stage(phase, plan, pooled) for phase in plan.phases]
    assert rates == [_by_stage(phase, of_own, own) for phase in of_own.phases]


@pytest.mark.parametrize("strategy", ["full", "head_then_full"])
def test_a_pretrained_head_has_the_learning_rate_of_the_body(load: Load, strategy: str) -> None:
    checkpoint = load("vit", OLD, keep_head=True)
    plan = _plan(checkpoint, strategy, learning_rate=2.0)
    assert _by_stage(plan.phases[0], plan, checkpoint)["head"] == 2.0
    assert all(phase.solver == "trainer" for phase in plan.phases)


def test_a_pretrained_head_is_trained_in_steps_for_a_reason(load: Load) -> None:
    checkpoint = load("vit", OLD, keep_head=True)
    assert _plan(checkpoint, "head").phases[0].solver == "trainer"
    assert why_in_steps(_job(checkpoint)) == "it was kept"


def test_label_smoothing_is_trained_in_steps_for_a_reason(load: Load) -> None:
    plan = _plan(load("bert"), "head", label_smoothing_factor=0.1)
    assert plan.phases[0].solver == "trainer"
    reason = why_in_steps(_job(load("bert"), label_smoothing_factor=0.1))
    assert reason == "--label_smoothing_factor needs steps"
    assert why_in_steps(_job(load("bert"))) is None


# --- rules and flags ---


def test_explicit_flags_win_over_rules(load: Load) -> None:
    checkpoint = load("bert")
    options = {
        "learning_rate": 0.5,
        "num_train_epochs": 7.0,
        "per_device_train_batch_size": 3,
        "weight_decay": 0.25,
    }
    given, ruled = (
        _plan(checkpoint, "top_layers", **options, trainable_layers=3),
        _plan(checkpoint, "top_layers"),
    )
    assert (given.learning_rate, given.batch_size, given.weight_decay) == (0.5, 3, 0.25)
    assert (given.phases[0].epochs, given.phases[0].layers) == (7.0, 3)
    assert ruled.learning_rate == defaults.default_learning_rate(
        "top_layers", parameter_count(checkpoint.model)
    )
    assert (ruled.batch_size, ruled.weight_decay, ruled.phases[0].layers) == (16, 0.01, 1)
    assert ruled.phases[0].epochs == 40  # of 3 steps each


def test_flags_of_adapters_and_of_the_frozen_pass_are_in_the_plan(load: Load) -> None:
    plan = _plan(load("vit"), "lora", peft_method="loha", lora_rank=2, cached_views=2, bf16=True)
    assert (plan.phases[0].adapter, plan.phases[0].adapter_rank) == ("loha", 2)
    assert (plan.frozen_dtype, plan.cached_views) == ("bfloat16", 2)


@pytest.mark.parametrize(
    "flag", [{"gradient_accumulation_steps": 4}, {"per_device_train_batch_size": 64}]
)
def test_the_epochs_follow_the_examples_of_a_step(load: Load, flag: dict[str, int]) -> None:
    checkpoint, data = load("vit"), _data(640)
    assert _plan(checkpoint, "full", data).phases[0].epochs == 3  # of 40 steps each
    assert _plan(checkpoint, "full", data, **flag).phases[0].epochs == 12  # of 10


def test_contrastive_takes_half_of_the_epochs(load: Load) -> None:
    checkpoint = load("vit")
    assert (
        _plan(checkpoint, "contrastive").phases[0].epochs
        == _plan(checkpoint, "full").phases[0].epochs / 2
    )


@pytest.mark.parametrize("examples_a_step", [1, 16, 128])
def test_the_epochs_of_contrastive_are_the_same_whatever_its_batches(examples_a_step: int) -> None:
    assert defaults.default_epochs("contrastive", 280, examples_a_step) == 3.5


def test_the_top_quarter_of_the_layers_trains_by_default() -> None:
    (phase,) = STRATEGIES["top_layers"](SCHEDULE)
    assert (phase.trainable, phase.layers) == (("head", "body"), 2)
    assert [defaults.default_trainable_layers(layers) for layers in (1, 4, 6, 12, 24)] == [
        1,
        1,
        2,
        3,
        6,
    ]


def test_smaller_networks_learn_at_higher_rates_within_bounds() -> None:
    rates = [
        defaults.default_learning_rate("full", size) for size in (3e5, 2.27e7, 1.1e8, 3.4e8, 7e9)
    ]
    assert rates == [
        1e-3,
        pytest.approx(2e-4, rel=0.1),
        pytest.approx(5e-5),
        pytest.approx(2e-5, rel=0.1),
        1e-5,
    ]


@pytest.mark.parametrize(("parameters", "rate"), [(3e5, 3e-3), (1.1e8, 5e-4), (7e9, 1e-4)])
def test_adapters_learn_at_ten_times_the_rate_up_to_a_bound(parameters: float, rate: float) -> None:
    assert defaults.default_learning_rate("lora", int(parameters)) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("examples", "epochs"),
    [(10, 120), (17, 60), (100, 18), (1000, 4), (1280, 3), (100_000, 3), (1, 120)],
)
def test_few_examples_are_seen_often_and_many_a_few_times(examples: int, epochs: float) -> None:
    assert (
        defaults.default_epochs("full", examples, defaults.default_batch_size(examples)) == epochs
    )


# --- what does not fit ---


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_contrastive_is_refused_without_one_class_a_row(
    load: Load, problem_type: ProblemType
) -> None:
    labels = LABELS[:1] if problem_type == "regression" else LABELS
    checkpoint = load("bert", labels, problem_type=problem_type)
    with pytest.raises(
        UserError, match=f"needs one class per row, the labels are for {problem_type}"
    ):
        _plan(checkpoint, "contrastive", _data(problem_type=problem_type))


def test_contrastive_is_refused_without_one_output_layer_and_a_head_is_stepped(
    tmp_path: Path,
) -> None:
    sizes = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "image_size": 64}
    AutoModelForImageClassification.from_config(SwiftFormerConfig(**sizes)).save_pretrained(
        tmp_path
    )  # two heads
    checkpoint = checkpoints.load(str(tmp_path), IMAGES, LABELS)
    with pytest.raises(
        UserError, match="needs one linear output layer, SwiftFormerForImageClassification has none"
    ):
        _plan(checkpoint, "contrastive")
    plan = _plan(checkpoint, "head")
    assert plan.phases[0].solver == "trainer"
    assert why_in_steps(_job(checkpoint)) == "it is more than one linear layer"


def test_more_layers_than_there_are_is_refused(load: Load) -> None:
    with pytest.raises(UserError, match="--trainable_layers 5: the model has 4"):
        _plan(load("resnet"), "top_layers", trainable_layers=5)
