import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ModernBertConfig,
    MPNetConfig,
    pipeline,
    set_seed,
)

from hf_transfer.cli.flags import read_config
from hf_transfer.data.sources import load_data
from hf_transfer.models import pooling
from hf_transfer.models.checkpoint import Checkpoint, load_checkpoint
from hf_transfer.models.head import find_linear_head
from hf_transfer.models.pooling import UnpoolableError, mean_pooled, with_mean_pooling
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import run_plan
from tests import checkpoints
from tests.unit.models.text_sizes import SIZES, WITH_LAYER

IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")
LABELS = ("x", "y", "z")
WITH_OPTION = {"modernbert": ModernBertConfig(**SIZES, cls_token_id=0, sep_token_id=2)}

Load = Callable[[str], Checkpoint]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A function that loads a tiny model whose weights are far from those that training starts with."""
    configs: dict[str, Any] = {
        **WITH_LAYER,
        **WITH_OPTION,
        "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60, pad_token_id=1),
        "mpnet": MPNetConfig(**SIZES),
    }

    def load_one(name: str) -> Checkpoint:
        folder = tmp_path_factory.mktemp(name)
        set_seed(0)
        model = AutoModelForSequenceClassification.from_config(configs[name])
        with torch.no_grad():
            for parameter in model.parameters():
                _ = (
                    parameter.add_(0.4 * torch.randn_like(parameter))
                    if parameter.ndim == 1
                    else parameter.mul_(8)
                )
        model.save_pretrained(folder)
        return checkpoints.load(str(folder), TEXTS, LABELS)

    return load_one


def _batch() -> dict[str, torch.Tensor]:
    """Rows of 20, 11 and 5 tokens."""
    ids = torch.randint(5, 60, (3, 20), generator=torch.Generator().manual_seed(7))
    mask = (torch.arange(20) < torch.tensor([[20], [11], [5]])).long()
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def _features(model: Any, batch: dict[str, torch.Tensor], layer: str | None = None) -> torch.Tensor:
    """What a layer reads, the output layer where none is named."""
    read: list[torch.Tensor] = []
    module = model.get_submodule(layer or find_linear_head(model))
    handle = module.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        model.eval()(**batch)
    handle.remove()
    return read[0]


def _mean(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        return (model.base_model.eval()(**batch)[0] * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("name", WITH_LAYER)
def test_the_head_reads_the_mean_over_all_tokens_but_padding(load: Load, name: str) -> None:
    checkpoint, batch = load(name), _batch()
    features = _features(with_mean_pooling(checkpoint).model, batch)
    for row, mean in zip(features, _mean(checkpoint.model, batch), strict=True):
        assert torch.corrcoef(torch.stack([row, mean]))[0, 1] > 0.998  # a few large values are bent


@pytest.mark.parametrize("name", [*WITH_LAYER, *WITH_OPTION])
def test_padding_changes_nothing(load: Load, name: str) -> None:
    model, batch = with_mean_pooling(load(name)).model.eval(), _batch()
    alone = {key: tensor[1:2, :11] for key, tensor in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            model(**batch).logits[1:2], model(**alone).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", [*WITH_LAYER, *WITH_OPTION])
def test_it_is_saved_and_loaded_as_a_plain_model(load: Load, name: str, tmp_path: Path) -> None:
    pooled = with_mean_pooling(load(name))
    pooled.model.save_pretrained(tmp_path)
    again, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert list(again.config.id2label.values()) == list(LABELS)
    assert again.config.problem_type == "single_label_classification"
    with torch.no_grad():
        assert torch.equal(again.eval()(**_batch()).logits, pooled.model.eval()(**_batch()).logits)


def test_a_pipeline_says_what_the_model_says(tiny_bert: Path, tmp_path: Path) -> None:
    pooled = with_mean_pooling(checkpoints.load(str(tiny_bert), TEXTS, LABELS))
    pooled.model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    texts = ["the cat sleeps", "a red bird sings a dog"]
    given = pipeline("text-classification", str(tmp_path), top_k=None, device="cpu")(
        texts, batch_size=2
    )
    with torch.no_grad():
        logits = pooled.model.eval()(
            **pooled.processor(texts, padding=True, return_tensors="pt")
        ).logits
    for row, scores in zip(logits.softmax(-1), given, strict=True):
        named = {each["label"]: each["score"] for each in scores}
        assert [named[label] for label in LABELS] == pytest.approx(row.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", WITH_LAYER)
def test_all_that_was_put_in_is_fixed_and_the_head_is_one_linear_layer(
    load: Load, name: str
) -> None:
    checkpoint = load(name)
    pooled = with_mean_pooling(checkpoint)
    output = find_linear_head(pooled.model)
    assert pooled.head == pooled.new_parameters == (f"{output}.weight", f"{output}.bias")
    added = {name for name, _ in pooled.model.named_parameters()} - set(
        checkpoint.model.state_dict()
    )
    assert added
    assert added < set(pooled.fixed)
    dense = set(pooled.fixed) - added
    assert {name.rpartition(".")[2] for name in dense} == {"weight", "bias"}
    assert dense <= set(checkpoint.new_parameters) | set(pooled.dropped_parameters)


@pytest.mark.parametrize("name", WITH_LAYER)
def test_all_else_is_as_it_was_pretrained(load: Load, name: str) -> None:
    checkpoint = load(name)
    pooled, old = with_mean_pooling(checkpoint), checkpoint.model.state_dict()
    same = [name for name in old if name not in pooled.fixed]
    assert set(pooled.head) < set(same)
    assert all(torch.equal(pooled.model.state_dict()[name], old[name]) for name in same)


@pytest.mark.parametrize("name", WITH_LAYER)
def test_the_added_layer_is_none_of_the_networks_layers(load: Load, name: str) -> None:
    checkpoint = load(name)
    pooled = with_mean_pooling(checkpoint)
    assert (
        pooled.layers.stages
        == checkpoint.layers.stages
        == ("embeddings", "layer 1", "layer 2", "head")
    )
    assert {pooled.layers.depth_of(name) for name in (*pooled.fixed, *pooled.head)} == {3}
    old = checkpoint.layers.depths
    assert all(
        pooled.layers.depths[name] == depth
        for name, depth in old.items()
        if name not in pooled.fixed
    )


@pytest.mark.parametrize("name", WITH_OPTION)
def test_a_class_with_an_option_for_the_mean_gets_no_layer(load: Load, name: str) -> None:
    checkpoint, batch = load(name), _batch()
    pooled = with_mean_pooling(checkpoint)
    assert pooled.model.config.classifier_pooling == "mean"
    assert pooled.fixed == ()
    assert pooled.head == checkpoint.head
    assert set(pooled.model.state_dict()) == set(checkpoint.model.state_dict())
    torch.testing.assert_close(
        _features(pooled.model, batch, "head.dense"), _mean(checkpoint.model, batch)
    )


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_the_given_model_is_untouched(load: Load, name: str) -> None:
    checkpoint = load(name)
    checkpoint.model.train()
    checkpoint.model.base_model.eval()
    modes = [module.training for module in checkpoint.model.modules()]
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    config, random_state = checkpoint.model.config.to_dict(), torch.get_rng_state()
    with torch.no_grad():
        for parameter in with_mean_pooling(checkpoint).model.parameters():
            parameter.fill_(0)
    assert checkpoint.model.config.to_dict() == config
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in checkpoint.model.state_dict().items()
    )
    assert [module.training for module in checkpoint.model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in checkpoint.model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_large_values_of_a_network_do_not_hide_that_another_vector_is_read(load: Load) -> None:
    checkpoint = load("bert")
    norm = checkpoint.model.bert.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        norm.bias[3] += (
            1000.0  # of every token, as of RoBERTa: all vectors of the network correlate
        )
    seen = _features(with_mean_pooling(checkpoint).model, _batch(), "bert.pooler.dense")
    mean = _mean(checkpoint.model, _batch())
    assert torch.corrcoef(mean[:2])[0, 1] > 0.999
    others = [number for number in range(32) if number != 3]
    for row, expected in zip(seen[:, others], mean[:, others], strict=True):
        assert torch.corrcoef(torch.stack([row, expected]))[0, 1] > 0.999


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt2", "score reads every token"),
        (
            "mpnet",
            "would read a vector that correlates with the mean",
        ),  # a bias by position, which all layers share
    ],
)
def test_an_architecture_that_cannot_read_the_mean_is_refused(
    load: Load, name: str, reason: str
) -> None:
    with pytest.raises(UnpoolableError, match=reason):
        with_mean_pooling(load(name))


def test_a_network_that_reads_pictures_is_refused(tiny_resnet: Path) -> None:
    with pytest.raises(UnpoolableError, match="reads pixel_values, not tokens"):
        with_mean_pooling(checkpoints.load(str(tiny_resnet), IMAGES, LABELS))


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_what_reads_the_mean_already_is_refused(load: Load, name: str) -> None:
    with pytest.raises(UnpoolableError, match="reads the mean already"):
        with_mean_pooling(with_mean_pooling(load(name)))


def test_a_head_that_was_kept_is_refused(load: Load) -> None:
    with pytest.raises(UnpoolableError, match="was kept"):
        with_mean_pooling(replace(load("bert"), new_parameters=()))


def test_a_full_memory_is_not_taken_for_an_architecture_that_does_not_go(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pooling, "fill_layer", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        with_mean_pooling(load("bert"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the models that are built, one entry each."""
    built: list[str] = []
    for kind in (BertForSequenceClassification, GPT2ForSequenceClassification):
        build = kind._from_config
        note = partial(_note_and_build, built, kind.__name__, build)
        monkeypatch.setattr(kind, "_from_config", note)
    return built


def _note_and_build(built: list[str], name: str, build: Any, *config: Any, **options: Any) -> Any:
    built.append(name)
    return build(*config, **options)


def test_a_checkpoint_is_pooled_once(load: Load, built: list[str]) -> None:
    checkpoint = load("bert")
    pooled, models = mean_pooled(checkpoint), len(built)
    assert models > 0
    assert mean_pooled(checkpoint) is pooled
    assert len(built) == models
    other = replace(checkpoint)
    assert mean_pooled(other) is mean_pooled(other) is not pooled
    assert len(built) > models


def test_a_run_with_the_mean_leaves_the_weights_of_the_next_as_they_were(
    tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    words = ("--model_name_or_path", tiny_bert, "--dataset_name", text_file, "--use_cpu")
    words += ("--label_column", "animal", "--pooling", "mean", "--strategy", "full")
    words += ("--max_steps", "2", "--disable_tqdm", "true", "--output_dir", tmp_path)
    config = read_config("text-classification", argv=[*map(str, words)])
    data = load_data(config.data, config.task, seed=0)
    checkpoint = load_checkpoint(config.model, data)
    before = [weight.clone() for weight in mean_pooled(checkpoint).model.parameters()]
    choice = choose_plan(config.transfer, checkpoint, data, config.training, config.cache)
    trained = run_plan(choice.plan, checkpoint, data, config.training, config.cache)
    after = list(mean_pooled(checkpoint).model.parameters())
    assert all(map(torch.equal, after, before))
    assert not all(map(torch.equal, trained.model.parameters(), before))


def test_a_refusal_is_remembered(load: Load, built: list[str]) -> None:
    checkpoint = load("gpt2")
    with pytest.raises(UnpoolableError, match="score reads every token"):
        mean_pooled(checkpoint)
    models = len(built)
    with pytest.raises(UnpoolableError, match="score reads every token"):
        mean_pooled(checkpoint)
    assert len(built) == models > 0


def test_what_is_remembered_goes_with_its_checkpoint(load: Load) -> None:
    checkpoint = load("bert")
    model = weakref.ref(mean_pooled(checkpoint).model)
    assert model() is not None
    del checkpoint
    gc.collect()
    assert model() is None
