import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    pipeline,
    set_seed,
)

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import UserError
from hf_transfer.job import make_job
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import find_linear_head, headless, read_logits
from hf_transfer.models.pooling import with_mean_pooling
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.contrastive import (
    EXAMPLES_PER_CLASS,
    TEMPERATURE,
    BalancedOrder,
    contrastive_loss,
)
from hf_transfer.training.engine import Trained, run_plan
from hf_transfer.training.step_phase import phase_batches
from tests import checkpoints

Load = Callable[[str], tuple[Checkpoint, Data]]


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny GPT-2 of four labels and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(folder)
    set_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.2}
    config = GPT2Config(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=4, **sizes
    )
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def load(request: pytest.FixtureRequest, picture_folder: Path, text_file: Path) -> Load:
    """A function that loads a tiny model by its fixture, and eight rows of each class that it can tell."""

    def load_one(name: str) -> tuple[Checkpoint, Data]:
        images = name in ("tiny_resnet", "tiny_vit")
        task = find_task("image-classification" if images else "text-classification")
        source = str(picture_folder if images else text_file)
        data = load_data(
            DataConfig(source, label_column="label" if images else "animal", examples_per_class=8),
            task,
            0,
        )
        return checkpoints.load(str(request.getfixturevalue(name)), task, data.labels), data

    return load_one


def _loss(features: torch.Tensor, labels: list[int]) -> float:
    return float(contrastive_loss({"logits": features}, torch.tensor(labels)))


def _by_the_formula(features: torch.Tensor, labels: list[int]) -> float:
    """L_out of Khosla et al. 2020, equation 2, term by term; over rows that have another one of their class."""
    rows = [row / row.norm() for row in features.double()]
    losses = []
    for i, own in enumerate(labels):
        same = [p for p, label in enumerate(labels) if label == own and p != i]
        others = [a for a in range(len(labels)) if a != i]
        total = sum(math.exp(float(rows[i] @ rows[a]) / TEMPERATURE) for a in others)
        terms = [math.log(math.exp(float(rows[i] @ rows[p]) / TEMPERATURE) / total) for p in same]
        losses += [-sum(terms) / len(same)] if same else []
    return sum(losses) / len(losses)


def _features(rows: int, width: int = 5) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


# --- the loss ---


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 1, 1], [0, 1, 0, 2, 2, 0, 1], [3, 3, 3], [0, 0, 1, 2, 2, 5], [0] * 8 + [1] * 3],
)
def test_the_loss_is_that_of_the_paper(labels: list[int]) -> None:
    features = _features(len(labels))
    assert _loss(features, labels) == pytest.approx(_by_the_formula(features, labels), rel=1e-5)


def test_the_lengths_of_features_make_no_difference() -> None:
    features, labels = _features(6), torch.tensor([0, 0, 1, 1, 2, 2])
    longer = features * torch.tensor([[1.0], [9.0], [0.1], [2.0], [3.0], [4.0]])
    torch.testing.assert_close(
        contrastive_loss({"logits": longer}, labels), contrastive_loss({"logits": features}, labels)
    )


def test_batches_whose_losses_trainer_sums_count_by_their_rows() -> None:
    features, labels = _features(6), torch.tensor([0, 0, 1, 1, 2, 2])
    whole = contrastive_loss({"logits": features}, labels)
    summed = 4 * contrastive_loss({"logits": features}, labels, num_items_in_batch=torch.tensor(24))
    torch.testing.assert_close(summed, whole)


def test_a_row_alone_in_its_class_is_a_negative_only() -> None:
    features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.9, 0.4]], requires_grad=True)
    loss = contrastive_loss({"logits": features}, torch.tensor([0, 0, 1]))
    (gradient,) = torch.autograd.grad(loss, features)
    moved = features.detach() - torch.tensor([[0.0], [0.0], [0.1]]) * gradient
    assert torch.cosine_similarity(moved[2], features[0], dim=0) < torch.cosine_similarity(
        features[2], features[0], dim=0
    )
    assert loss.item() == pytest.approx(_by_the_formula(features.detach(), [0, 0, 1]), rel=1e-5)


def test_a_batch_of_rows_that_are_all_alone_has_no_gradient() -> None:
    features = _features(4).requires_grad_()
    loss = contrastive_loss({"logits": features}, torch.arange(4))
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss.item() == 0
    assert not gradient.any()


def test_classes_that_lie_apart_have_a_smaller_loss_than_those_that_are_mixed() -> None:
    directions = torch.eye(3).repeat_interleave(4, 0)
    apart = _loss(directions, np.repeat([0, 1, 2], 4).tolist())
    mixed = _loss(directions, np.tile([0, 1, 2], 4).tolist())
    # The best there is with three equal others in the class: log 3, as far as exp(-10) is nothing.
    assert apart == pytest.approx(math.log(3), abs=1e-3)
    assert mixed > 5


def test_a_loss_of_half_precision_is_taken_in_32_bits() -> None:
    features, labels = _features(8).bfloat16(), [0, 0, 1, 1, 2, 2, 3, 3]
    loss = contrastive_loss({"logits": features}, torch.tensor(labels))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(_by_the_formula(features.float(), labels), rel=1e-4)


# --- the batches ---


def _batches(order: BalancedOrder) -> Iterator[list[int]]:
    rows = order.of_epoch(0)
    assert len(rows) == len(order)
    return (
        rows[start : start + order.batch_size] for start in range(0, len(rows), order.batch_size)
    )


def test_every_batch_holds_four_of_each_class() -> None:
    labels = [0] * 50 + [1] * 9 + [2] * 4
    batches = list(_batches(BalancedOrder(labels, seed=0)))
    assert len(batches) == 6  # 63 rows in batches of 12
    assert all(Counter(labels[row] for row in batch) == {0: 4, 1: 4, 2: 4} for batch in batches)


def test_every_row_of_a_class_comes_once_before_it_repeats() -> None:
    labels = [0] * 12 + [1] * 12
    order = BalancedOrder(labels, seed=0).of_epoch(0)
    assert Counter(order) == dict.fromkeys(range(24), 1)


def test_with_many_classes_each_batch_holds_four_of_some_and_none_is_left_out() -> None:
    labels = np.repeat(np.arange(8), 6).tolist()
    order = BalancedOrder(labels, seed=0, max_batch_size=16)
    assert order.batch_size == 16
    batches = list(_batches(order))
    assert all(list(Counter(labels[row] for row in batch).values()) == [4] * 4 for batch in batches)
    for first, second in zip(batches[::2], batches[1::2], strict=False):
        assert {labels[row] for row in first + second} == set(range(8))


def test_no_class_is_twice_in_a_batch_where_classes_do_not_divide_the_room() -> None:
    labels = np.repeat(np.arange(5), 16).tolist()
    batches = list(_batches(BalancedOrder(labels, seed=0, max_batch_size=16)))
    assert len(batches) == 5
    assert all(list(Counter(labels[row] for row in batch).values()) == [4] * 4 for batch in batches)
    assert Counter(labels[row] for batch in batches for row in batch) == dict.fromkeys(range(5), 16)


@pytest.mark.parametrize(
    ("classes", "max_batch_size", "batch_size"),
    [(3, 128, 12), (100, 128, 128), (5, 16, 16), (5, 7, 6), (5, 3, 4)],
)
def test_a_batch_has_room_for_two_classes_at_least(
    classes: int, max_batch_size: int, batch_size: int
) -> None:
    assert BalancedOrder(list(range(classes)) * 3, 0, max_batch_size).batch_size == batch_size


def test_a_class_of_one_row_repeats_it() -> None:
    batches = list(_batches(BalancedOrder([0] * 9 + [1], seed=0)))
    assert len(batches) == 2
    assert all(batch.count(9) == EXAMPLES_PER_CLASS for batch in batches)


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    labels = np.repeat(np.arange(3), 10).tolist()
    orders = [BalancedOrder(labels, seed).of_epoch(0) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_epochs_differ_and_are_reproducible() -> None:
    order = BalancedOrder(np.repeat(np.arange(3), 10).tolist(), seed=0)
    assert order.of_epoch(0) == order.of_epoch(0) != order.of_epoch(1)


# --- what learns ---


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_resnet", "tiny_gpt2"])
def test_features_are_what_the_output_layer_reads(load: Load, name: str) -> None:
    checkpoint, data = load(name)
    model, batch = checkpoint.model.eval(), _batch(checkpoint, data)
    layer = model.get_submodule(find_linear_head(model))
    with torch.no_grad():
        logits = read_logits(model(**batch))
        with headless(model):
            features = read_logits(model(**batch))
        assert features.shape == (len(data.train), layer.in_features)
        torch.testing.assert_close(layer(features), logits)
        torch.testing.assert_close(read_logits(model(**batch)), logits)  # the head is back


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_resnet", "tiny_gpt2"])
def test_the_engine_trains_on_features_in_balanced_batches_that_differ(
    load: Load, name: str, tmp_path: Path
) -> None:
    checkpoint, data = load(name)
    model = checkpoint.model
    pad = getattr(model.config, "pad_token_id", None)
    encoder = make_encoder(checkpoint.task, checkpoint.processor, model.config)

    def key(row: torch.Tensor) -> bytes:
        # Images may be normalised in another order of operations.
        return (row.mul(1000).round() if pad is None else row[row != pad]).numpy().tobytes()

    label_of = {}
    for row in encoder.rows(data.train):
        label_of[key(encoder.batch([row])[model.main_input_name][0])] = row["label"]
    seen: list[tuple[list[int], torch.Tensor]] = []

    def look(module: Any, args: Any, inputs: dict[str, torch.Tensor], outputs: Any) -> None:
        if module.training:
            labels = [label_of[key(row)] for row in inputs[model.main_input_name]]
            seen.append((labels, read_logits(outputs).detach()))

    model.register_forward_hook(look, with_kwargs=True)
    width = model.get_submodule(find_linear_head(model)).in_features
    classes = len(data.labels)
    # Nothing moves, so that batches which differ are of other rows.
    flags = ("--num_train_epochs", "2", "--learning_rate", "1e-30", "--logging_strategy", "steps")
    phase = _train(checkpoint, data, tmp_path, *flags, "--logging_steps", "1").phases[0]
    assert len(seen) == phase.steps == 4
    for labels, features in seen:
        assert features.shape == (4 * classes, width)
        assert Counter(labels) == dict.fromkeys(range(classes), 4)
    expected = [_loss(features, labels) for labels, features in seen]
    assert [entry.loss for entry in phase.history] == pytest.approx(expected, rel=1e-3)
    epochs = [seen[0][1], seen[2][1]]
    assert not torch.allclose(*(torch.cat([e.sort(0).values]) for e in epochs), atol=1e-4)


def test_a_small_batch_size_leaves_room_for_two_classes(load: Load, tmp_path: Path) -> None:
    trained = _train(
        *load("tiny_bert"),
        tmp_path,
        "--num_train_epochs",
        "1",
        "--per_device_train_batch_size",
        "8",
    )
    assert trained.phases[0].steps == 3  # of 24 rows


def test_the_body_learns_by_the_contrastive_loss_and_then_the_head_in_closed_form(
    load: Load, tmp_path: Path
) -> None:
    checkpoint, data = load("tiny_bert")
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    trained = _train(checkpoint, data, tmp_path, "--num_train_epochs", "2")
    body, head = trained.phases
    assert (body.name, head.name) == ("contrastive", "head")
    assert (
        body.trainable_parameters + head.trainable_parameters == checkpoint.model.num_parameters()
    )
    assert head.solved
    assert head.cache == "off"  # weights that have learned are of use to no other run
    after = trained.model.state_dict()
    assert not any(
        torch.equal(after[name], before[name]) for name in before if name.endswith("query.weight")
    )


def test_validation_rows_are_not_used(load: Load, tmp_path: Path) -> None:
    checkpoint, data = load("tiny_bert")
    data = replace(data, splits={**data.splits, "validation": data.test})
    body, _ = _train(checkpoint, data, tmp_path, "--num_train_epochs", "2").phases
    assert body.best_step is None
    assert body.history
    assert not any(entry.eval_loss is not None for entry in body.history)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_resnet", "tiny_gpt2"])
def test_rows_of_a_class_lie_closer_than_before_and_those_of_others_farther(
    load: Load, name: str, tmp_path: Path
) -> None:
    checkpoint, data = load(name)
    if name == "tiny_bert":
        checkpoint = with_mean_pooling(checkpoint)
    batch, labels = _batch(checkpoint, data), np.array(data.train["label"][:])
    before = _closeness(checkpoint.model, batch, labels)
    trained = _train(
        checkpoint, data, tmp_path, "--num_train_epochs", "80", "--learning_rate", "1e-2"
    )
    after = _closeness(trained.model, batch, labels)
    assert after.within - after.between > before.within - before.between + 0.2
    history = [entry.loss for entry in trained.phases[0].history]
    assert history[-1] < history[0]


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_the_result_is_a_plain_model_that_a_pipeline_loads(
    load: Load, name: str, tmp_path: Path
) -> None:
    checkpoint, data = load(name)
    trained = _train(checkpoint, data, tmp_path, "--num_train_epochs", "2")
    trained.model.save_pretrained(tmp_path)
    checkpoint.processor.save_pretrained(tmp_path)
    _, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] | report["unexpected_keys"]
    with torch.no_grad():
        expected = read_logits(trained.model.eval()(**_batch(checkpoint, data))).softmax(-1)
    given = pipeline("text-classification", str(tmp_path), top_k=None, device="cpu")(
        data.train["text"][:]
    )
    for scores, row in zip(given, expected.tolist(), strict=True):
        named = {each["label"]: each["score"] for each in scores}
        assert [named[label] for label in data.labels] == pytest.approx(row, abs=1e-5)


def _batch(checkpoint: Checkpoint, data: Data) -> dict[str, torch.Tensor]:
    """All training rows, without their labels."""
    encoder = make_encoder(checkpoint.task, checkpoint.processor, checkpoint.model.config)
    batch = encoder.batch(list(encoder.rows(data.train)))
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _closeness(model: Any, batch: dict[str, torch.Tensor], labels: np.ndarray) -> SimpleNamespace:
    """The mean cosine of two rows of a class, and of two rows of different classes."""
    with torch.no_grad(), headless(model.eval()):
        features = torch.nn.functional.normalize(read_logits(model(**batch)), dim=-1)
    cosines, same = (features @ features.T).numpy(), labels[:, None] == labels[None]
    return SimpleNamespace(within=cosines[same].mean(), between=cosines[~same].mean())


def _train(checkpoint: Checkpoint, data: Data, tmp_path: Path, *flags: str) -> Trained:
    given = (
        "--model_name_or_path",
        "x",
        "--dataset_name",
        "y",
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
    )
    own = ("--strategy", "contrastive", "--disable_tqdm", "true")
    config = read_config(argv=[*given, *own, *flags])
    return run_plan(
        make_plan(config.transfer, make_job(checkpoint, data, config.training)),
        checkpoint,
        data,
        config.training,
        config.cache,
    )


@pytest.mark.parametrize(("shards", "processes"), [(1, 1), (2, 2), (2, 1)])
def test_a_process_has_complete_batches(shards: int, processes: int) -> None:
    batches = phase_batches(*_shared(shards, processes))
    assert (batches.batch_size, batches.step_size) == (12, 12 * shards)


def test_a_run_resumed_in_more_processes_is_refused_since_a_batch_would_be_torn() -> None:
    with pytest.raises(
        UserError, match="12 examples per step cannot be divided among 2 processes"
    ) as refused:
        phase_batches(*_shared(shards=1, processes=2))
    assert refused.value.hint == "start as many as before, or one: a step had 1 batches of 12"


def _shared(shards: int, processes: int) -> tuple[Any, Any, Dataset]:
    """A phase, work that began with `shards` batches a step and is resumed by `processes`, and rows."""
    facts = {
        "per_device_train_batch_size": None,
        "seed": 0,
        "world_size": processes,
        "process_index": 0,
    }
    training = SimpleNamespace(**facts)
    phase = SimpleNamespace(loss="contrastive")
    work = SimpleNamespace(
        job=SimpleNamespace(training=training),
        shards=shards,
        accumulation=-(-shards // processes),
    )
    return phase, work, Dataset.from_dict({"label": np.repeat(np.arange(3), 8).tolist()})
