import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    FNetConfig,
    FNetModel,
    ImageGPTConfig,
    ImageGPTForImageClassification,
    ImageGPTImageProcessor,
    LlamaConfig,
    LlamaForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.config.run import RunConfig
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import UserError
from hf_transfer.frozen.split import split_model
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import read_logits
from hf_transfer.store.entries import list_entries, resolve_cache_dir
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import Trained, run_plan
from tests import checkpoints

SOURCES = {
    "image": DataConfig("builtin:digits", max_train_samples=200),
    "text": DataConfig("builtin:docstrings", max_train_samples=200),
}


def _config(*flags: str) -> RunConfig:
    given = (
        "--model_name_or_path",
        "x",
        "--dataset_name",
        "y",
        "--output_dir",
        "nowhere",
        "--use_cpu",
    )
    # Choosing a pooling would compute the features of the head beforehand.
    config = read_config(argv=[*given, "--disable_tqdm", "true", "--pooling", "own", *flags])
    config.training.output_dir = None  # nothing is saved
    return config


def _load(folder: Path, kind: str) -> tuple[Checkpoint, Data]:
    task = find_task(f"{kind}-classification")
    data = load_data(SOURCES[kind], task, seed=0)
    return checkpoints.load(str(folder), task, data.labels), data


def _train(folder: Path, kind: str, *flags: str) -> Trained:
    config, (checkpoint, data) = _config(*flags), _load(folder, kind)
    plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
    return run_plan(plan, checkpoint, data, config.training, config.cache)


def _facts(trained: Trained) -> tuple[int, str]:
    (phase,) = trained.phases
    return phase.frozen_passes, phase.cache


def _curve(trained: Trained, key: str) -> list[float]:
    """The values of a loss in the order in which they were logged."""
    logged = [getattr(entry, key) for entry in trained.phases[0].history]
    return [value for value in logged if value is not None]


@pytest.fixture
def without_dropout(tiny_bert: Path, tmp_path: Path) -> Path:
    """The tiny BERT, so that two ways to train it can be compared."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "kind"), [("without_dropout", "text"), ("tiny_vit", "image"), ("tiny_resnet", "image")]
)
def test_the_loss_curve_is_the_one_without_the_cache(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    flags = (
        "--strategy",
        "top_layers",
        "--trainable_layers",
        "1",
        "--max_steps",
        "12",
        "--learning_rate",
        "1e-2",
    )
    flags += (
        "--logging_strategy",
        "steps",
        "--logging_steps",
        "1",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "6",
    )
    folder = request.getfixturevalue(name)
    cached, plain = (
        _train(folder, kind, *flags),
        _train(folder, kind, *flags, "--cache_frozen", "false"),
    )
    assert (_facts(cached), _facts(plain)) == ((2, "miss"), (0, "off"))  # train and validation
    for key, least in (("loss", 12), ("eval_loss", 2)):
        curves = [_curve(trained, key) for trained in (cached, plain)]
        assert len(curves[0]) >= least
        assert max(curves[0]) > min(curves[0]) + 1e-3
        assert curves[0] == pytest.approx(curves[1], abs=1e-5)


@pytest.mark.parametrize("strategy", ["head", "top_layers"])
def test_a_second_run_with_other_settings_above_the_boundary_makes_no_pass(
    strategy: str, tiny_vit: Path
) -> None:
    flags = ("--strategy", strategy, "--max_steps", "2", "--eval_strategy", "no")
    assert _facts(_train(tiny_vit, "image", *flags))[1] == "miss"
    others = (
        "--seed",
        "7",
        "--learning_rate",
        "0.1",
        "--weight_decay",
        "0.2",
        "--class_weights",
        "balanced",
    )
    assert _facts(_train(tiny_vit, "image", *flags, *others)) == (0, "hit")


Change = Callable[[Checkpoint, Data], tuple[Checkpoint, Data]]


def _change_weight(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    with torch.no_grad():
        parameters = [p for n, p in checkpoint.model.named_parameters() if n not in checkpoint.head]
        parameters[0].view(-1)[0] += 1e-3
    return checkpoint, data


def _change_last_frozen_weight(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    with torch.no_grad():
        parameters = [p for n, p in checkpoint.model.named_parameters() if n not in checkpoint.head]
        parameters[-1].view(-1)[-1] += 1e-3
    return checkpoint, data


def _change_config(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    checkpoint.model.config.layer_norm_eps = 1e-3
    return checkpoint, data


def _change_rows(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    splits = {**data.splits, "train": data.train.select(range(1, len(data.train)))}
    return checkpoint, replace(data, splits=splits)


def _change_order(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    splits = {**data.splits, "train": data.train.select(range(len(data.train))[::-1])}
    return checkpoint, replace(data, splits=splits)


def _change_text(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    changed = data.train.map(
        lambda row, n: {"text": "a bird sings" if n == 5 else row["text"]}, with_indices=True
    )
    return checkpoint, replace(data, splits={**data.splits, "train": changed})


def _change_head(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    with torch.no_grad():
        for name in checkpoint.head:
            checkpoint.model.get_parameter(name).add_(1.0)
    return checkpoint, data


def _change_labels(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    count = len(data.labels)
    changed = data.train.map(lambda row: {"label": (row["label"] + 1) % count})
    return checkpoint, replace(data, splits={**data.splits, "train": changed})


def _change_label_names(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    checkpoint.model.config.id2label = {n: f"label {n}" for n in range(len(data.labels))}
    return checkpoint, data


def _change_ids(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    changed = data.train.map(lambda row: {"id": f"other/{row['id']}"})
    return checkpoint, replace(data, splits={**data.splits, "train": changed})


def _change_nothing(checkpoint: Checkpoint, data: Data) -> tuple[Checkpoint, Data]:
    return checkpoint, data


@pytest.mark.parametrize(
    ("change", "flags", "cache"),
    [
        (_change_nothing, (), "hit"),
        (_change_head, (), "hit"),
        (_change_labels, (), "hit"),
        (_change_label_names, (), "hit"),
        (_change_ids, (), "hit"),
        (_change_weight, (), "miss"),
        (_change_last_frozen_weight, (), "miss"),
        (_change_config, (), "miss"),
        (_change_rows, (), "miss"),
        (_change_order, (), "miss"),
        (_change_text, (), "miss"),
        (_change_nothing, ("--max_length", "9"), "miss"),
        (_change_nothing, ("--frozen_dtype", "bfloat16"), "miss"),
        (_change_nothing, ("--seed", "3", "--label_smoothing_factor", "0"), "hit"),
    ],
)
def test_the_key_follows_what_determines_the_content_and_nothing_else(
    change: Change, flags: tuple[str, ...], cache: str, tiny_bert: Path
) -> None:
    _train(tiny_bert, "text", "--strategy", "head")
    config, (checkpoint, data) = _config("--strategy", "head", *flags), _load(tiny_bert, "text")
    data = replace(data, max_length=config.data.max_length)
    checkpoint, data = change(checkpoint, data)
    plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
    assert _facts(run_plan(plan, checkpoint, data, config.training, config.cache))[1] == cache


def test_images_and_their_processor_are_in_the_key(tiny_vit: Path) -> None:
    assert _facts(_train(tiny_vit, "image", "--strategy", "head")) == (1, "miss")
    config, (checkpoint, data) = _config("--strategy", "head"), _load(tiny_vit, "image")
    checkpoint.processor.image_mean = [0.4, 0.5, 0.5]
    plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
    assert _facts(run_plan(plan, checkpoint, data, config.training, config.cache))[1] == "miss"
    config, (checkpoint, data) = _config("--strategy", "head"), _load(tiny_vit, "image")
    brighter = data.train.map(
        lambda row: {"image": row["image"].point(lambda value: min(255, value + 1))}
    )
    data = replace(data, splits={**data.splits, "train": brighter})
    plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
    assert _facts(run_plan(plan, checkpoint, data, config.training, config.cache))[1] == "miss"


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_any_length_learn_as_without_the_cache_on_either_side(
    side: str, tiny_bert: Path, tmp_path: Path
) -> None:
    AutoTokenizer.from_pretrained(tiny_bert, padding_side=side).save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    flags = (
        "--strategy",
        "top_layers",
        "--max_steps",
        "3",
        "--logging_strategy",
        "steps",
        "--logging_steps",
        "1",
    )
    flags += ("--train_sampling_strategy", "random")
    curves = [
        _curve(_train(tmp_path, "text", *flags, *more), "loss")
        for more in ((), ("--cache_frozen", "false"))
    ]
    assert len(curves[0]) >= 3
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_without_room_the_head_is_solved_all_the_same(
    tiny_vit: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = _train(tiny_vit, "image", "--strategy", "head")
    full = _train(
        tiny_vit,
        "image",
        "--strategy",
        "head",
        "--cache_limit_gb",
        "1e-9",
        "--cache_dir",
        "nowhere",
    )
    assert (full.phases[0].frozen_passes, full.phases[0].cache) == (1, "off")
    assert "are more than --cache_limit_gb 1e-09" in caplog.text
    assert torch.allclose(full.model.classifier.weight, stored.model.classifier.weight, atol=1e-5)


def test_without_room_layers_train_without_the_cache(
    tiny_vit: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--strategy", "top_layers", "--max_steps", "2", "--cache_limit_gb", "1e-9")
    assert _facts(_train(tiny_vit, "image", *flags)) == (0, "off")
    assert "are more than --cache_limit_gb 1e-09" in caplog.text
    assert list_entries(resolve_cache_dir(None)) == []


def test_a_model_that_cannot_be_split_trains_without_the_cache(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(tmp_path)
    # Its layers hold positions before rows.
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=16, n_layer=4, n_head=2, d_inner=32)
    XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    trained = _train(tmp_path, "text", "--strategy", "top_layers", "--max_steps", "2")
    assert trained.phases[0].steps == 2
    assert _facts(trained) == (0, "off")
    assert "run in every epoch" in caplog.text


def test_a_model_that_pads_inside_trains_without_the_cache(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = LongformerConfig(
        vocab_size=20, attention_window=4, max_position_embeddings=64, **sizes
    )
    LongformerForSequenceClassification(config).save_pretrained(tmp_path)
    trained = _train(tmp_path, "text", "--strategy", "top_layers", "--max_steps", "2")
    assert (trained.phases[0].steps, _facts(trained)) == (2, (0, "off"))
    assert "run in every epoch" in caplog.text


def test_an_image_model_whose_upper_layers_read_its_inputs_trains_without_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clusters = [[x / 4 - 1, x / 4 - 1, x / 4 - 1] for x in range(8)]
    ImageGPTImageProcessor(clusters=clusters, size={"height": 4, "width": 4}).save_pretrained(
        tmp_path
    )
    config = ImageGPTConfig(vocab_size=9, n_positions=16, n_embd=16, n_layer=4, n_head=2)
    ImageGPTForImageClassification(config).save_pretrained(tmp_path)
    trained = _train(tmp_path, "image", "--strategy", "top_layers", "--max_steps", "2")
    assert (trained.phases[0].steps, _facts(trained)) == (2, (0, "off"))
    assert "the layers above the boundary also read input_ids" in caplog.text


def test_code_of_ones_own_is_in_the_key(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "from transformers import BertForSequenceClassification as Bert\nclass Own(Bert):\n    scale = {}\n"
    found = []
    for scale in (1, 1, 2):
        (tmp_path / "own_code.py").write_text(source.format(scale))
        checkpoint, data = _load(tiny_bert, "text")
        checkpoint.model.__class__ = importlib.reload(importlib.import_module("own_code")).Own
        config = _config("--strategy", "head")
        plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
        found.append(_facts(run_plan(plan, checkpoint, data, config.training, config.cache))[1])
    assert found == ["miss", "hit", "miss"]


def test_statistics_of_batchnorm_are_in_the_key(tiny_resnet: Path) -> None:
    found = []
    for shift in (0.0, 0.0, 0.5):
        config, (checkpoint, data) = _config("--strategy", "head"), _load(tiny_resnet, "image")
        next(b for n, b in checkpoint.model.named_buffers() if n.endswith("running_mean")).add_(
            shift
        )
        plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
        found.append(_facts(run_plan(plan, checkpoint, data, config.training, config.cache))[1])
    assert found == ["miss", "hit", "miss"]


def test_a_solved_head_is_the_start_of_full_and_may_be_the_best_step(tiny_vit: Path) -> None:
    flags = (
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        "--max_steps",
        "2",
        "--learning_rate",
        "10",
    )
    head, full = _train(tiny_vit, "image", "--strategy", "head_then_full", *flags).phases
    assert head.solved
    assert next(entry.step for entry in full.history if entry.eval_loss is not None) == 0
    assert full.best_step == 0


def test_more_layers_than_there_are_is_refused(tiny_vit: Path) -> None:
    with pytest.raises(UserError, match="--trainable_layers 9: the model has 2"):
        _train(tiny_vit, "image", "--strategy", "top_layers", "--trainable_layers", "9")


@pytest.mark.parametrize(
    "flags",
    [
        ("--strategy", "full", "--frozen_dtype", "bfloat16"),
        ("--strategy", "scratch", "--cached_views", "2", "--augmentation", "light"),
        ("--strategy", "head", "--cached_views", "2"),
        (
            "--strategy",
            "head",
            "--cached_views",
            "2",
            "--augmentation",
            "light",
            "--cache_frozen",
            "false",
        ),
        ("--strategy", "full", "--trainable_layers", "2"),
        ("--strategy", "top_layers", "--trainable_layers", "0"),
        ("--strategy", "head", "--cache_limit_gb", "0"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        _config(*flags)


def test_a_model_that_sees_the_padding_trains_without_the_cache(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "fnet"))
    size = AutoConfig.from_pretrained(tiny_bert).vocab_size
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    FNetModel(FNetConfig(vocab_size=size, **small)).save_pretrained(folder)
    trained = _train(folder, "text", "--strategy", "top_layers", "--max_steps", "2")
    assert _facts(trained) == (0, "off")
    assert "depends on the padding beside it" in caplog.text


def test_in_bfloat16_half_is_stored_and_the_weights_stay_to_the_bit(tiny_bert: Path) -> None:
    precise = _train(tiny_bert, "text", "--strategy", "head")
    halved = _train(tiny_bert, "text", "--strategy", "head", "--frozen_dtype", "bfloat16")
    assert halved.phases[0].cached_bytes < 0.7 * precise.phases[0].cached_bytes
    body = {n: t for n, t in precise.model.state_dict().items() if not n.startswith("classifier")}
    after = halved.model.state_dict()
    assert all(t.dtype == after[n].dtype and torch.equal(t, after[n]) for n, t in body.items())
    assert not torch.equal(after["classifier.weight"], precise.model.classifier.weight)


@pytest.mark.parametrize(
    ("name", "kind"), [("tiny_bert", "text"), ("tiny_vit", "image"), ("tiny_resnet", "image")]
)
def test_layers_learn_in_32_bits_from_what_was_computed_in_bfloat16(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    flags = ("--strategy", "top_layers", "--max_steps", "2", "--frozen_dtype", "bfloat16")
    trained = _train(request.getfixturevalue(name), kind, *flags)
    assert _facts(trained) == (2, "miss")
    assert {tensor.dtype for tensor in trained.model.parameters()} == {torch.float32}


def test_views_are_computed_once_each_and_learned_from(tiny_vit: Path) -> None:
    flags = ("--strategy", "head", "--augmentation", "light")
    plain = _train(tiny_vit, "image", "--strategy", "head")
    first = _train(tiny_vit, "image", *flags, "--cached_views", "3")
    again = _train(tiny_vit, "image", *flags, "--cached_views", "4", "--seed", "5")
    assert (_facts(first), _facts(again)) == ((3, "miss"), (1, "miss"))
    assert first.phases[0].augmentation == "light"
    assert not torch.allclose(
        first.model.classifier.weight, plain.model.classifier.weight, atol=1e-3
    )


def test_layers_above_the_boundary_learn_from_all_views(tiny_vit: Path) -> None:
    flags = (
        "--strategy",
        "top_layers",
        "--max_steps",
        "4",
        "--augmentation",
        "light",
        "--cached_views",
        "2",
    )
    trained = _train(tiny_vit, "image", *flags)
    assert _facts(trained) == (3, "miss")  # two views, and the validation rows as they are
    assert trained.phases[0].augmentation == "light"


def _logits_of(trained: Trained, rows: Any) -> np.ndarray:
    batch = trained.encoder.batch(list(trained.encoder.rows(rows)))
    batch.pop("labels")
    with torch.no_grad():
        return np.asarray(read_logits(trained.model.eval()(**batch)))


def test_the_solved_head_is_in_the_plain_model(tiny_bert: Path) -> None:
    trained = _train(tiny_bert, "text", "--strategy", "head")
    _, data = _load(tiny_bert, "text")
    logits = _logits_of(trained, data.train.select(range(20)))
    assert (logits.argmax(-1) == np.asarray(data.train["label"][:20])).mean() > 2 / len(data.labels)


def test_a_split_says_that_it_does_not_run_in_inference_mode(tiny_bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4).long()}
    split = split_model(model, "head")
    with torch.inference_mode(), pytest.raises(UserError, match=r"torch.inference_mode\(\)"):
        split.prefix(inputs)
    with torch.no_grad():
        torch.testing.assert_close(split.suffix(split.prefix(inputs)), model(**inputs).logits)
