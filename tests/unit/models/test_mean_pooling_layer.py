from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    ModernBertConfig,
    set_seed,
)

from hf_transfer.models.checkpoint import Checkpoint, randomized
from hf_transfer.models.head import find_linear_head
from hf_transfer.models.pooling import UnpoolableError, with_mean_pooling
from hf_transfer.tasks import find_task
from tests import checkpoints
from tests.unit.models.text_sizes import SIZES, WITH_LAYER

TEXTS = find_task("text-classification")
LABELS, OTHERS = ("x", "y", "z"), ("a", "b", "c", "d", "e")
# What a layer that is made by hand has in it, by a part of a parameter's name.
PARTS = [
    "query.weight",
    "key.bias",
    "value.weight",
    "attention.output.dense.weight",
    "intermediate.dense.weight",
]
PARTS += [
    "output.LayerNorm.weight",
    "output.LayerNorm.bias",
    "pooler.dense.weight",
    "pooler.dense.bias",
]

Pool = Callable[[str], Checkpoint]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """A function that makes a tiny model whose head reads the mean, and saves it to tmp_path / "pooled"."""

    def pool_one(name: str) -> Checkpoint:
        set_seed(0)
        AutoModelForSequenceClassification.from_config(WITH_LAYER[name]).save_pretrained(
            tmp_path / "plain"
        )
        pooled = with_mean_pooling(checkpoints.load(str(tmp_path / "plain"), TEXTS, LABELS))
        pooled.model.save_pretrained(tmp_path / "pooled")
        return pooled

    return pool_one


def _load(tmp_path: Path, labels: tuple[str, ...] = LABELS, **settings: Any) -> Checkpoint:
    return checkpoints.load(str(tmp_path / "pooled"), TEXTS, labels, **settings)


@pytest.mark.parametrize("labels", [LABELS, OTHERS], ids=["as many labels", "more labels"])
@pytest.mark.parametrize("name", WITH_LAYER)
def test_what_was_put_in_is_known_again(
    pool: Pool, tmp_path: Path, name: str, labels: tuple[str, ...]
) -> None:
    pooled, again = pool(name), _load(tmp_path, labels)
    assert again.fixed == pooled.fixed
    assert again.reads_mean
    assert again.head == again.new_parameters == pooled.head
    assert again.layers == pooled.layers
    old, new = pooled.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(new[name], old[name]) for name in old if name not in again.head)
    assert again.model.get_submodule(find_linear_head(again.model)).out_features == len(labels)


def test_a_head_that_is_kept_learns_alone_too(pool: Pool, tmp_path: Path) -> None:
    pooled, kept = pool("roberta"), _load(tmp_path, keep_head=True)
    assert kept.fixed == pooled.fixed
    assert not kept.new_parameters
    assert set(kept.head) == set(pooled.head)
    assert torch.equal(
        kept.model.classifier.out_proj.weight, pooled.model.classifier.out_proj.weight
    )


@pytest.mark.parametrize("keep_head", [False, True])
@pytest.mark.parametrize("name", WITH_LAYER)
def test_no_second_layer_is_put_in(pool: Pool, tmp_path: Path, name: str, keep_head: bool) -> None:
    pool(name)
    with pytest.raises(UnpoolableError, match="its head reads the mean already"):
        with_mean_pooling(_load(tmp_path, keep_head=keep_head))


@pytest.mark.parametrize(
    "config", [*WITH_LAYER.values(), GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60)]
)
def test_an_ordinary_checkpoint_has_nothing_fixed(tmp_path: Path, config: Any) -> None:
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "pooled")
    ordinary = _load(tmp_path)
    assert ordinary.fixed == ()
    assert not ordinary.reads_mean


def test_a_network_that_reads_pictures_has_nothing_fixed(tiny_vit: Path) -> None:
    assert checkpoints.load(str(tiny_vit), find_task("image-classification"), LABELS).fixed == ()


@pytest.mark.parametrize("part", PARTS)
def test_a_layer_that_has_learned_since_is_the_networks_own(
    pool: Pool, tmp_path: Path, part: str
) -> None:
    pooled = pool("bert")
    drifted = next(name for name in pooled.fixed if name.endswith(part))
    with torch.no_grad():
        pooled.model.get_parameter(drifted).view(-1)[-1] += 1e-4
    pooled.model.save_pretrained(tmp_path / "pooled")
    again = _load(tmp_path)
    assert again.fixed == ()
    assert set(pooled.fixed) <= set(again.layers.depths)


def test_a_class_whose_option_is_the_mean_reads_it_with_nothing_fixed(tmp_path: Path) -> None:
    config = ModernBertConfig(**SIZES, cls_token_id=0, sep_token_id=2, classifier_pooling="mean")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "pooled")
    again = _load(tmp_path)
    assert again.reads_mean
    assert again.fixed == ()


def test_what_was_put_in_stays_when_nothing_is_transferred(pool: Pool, tmp_path: Path) -> None:
    pool("distilbert")
    again = _load(tmp_path)
    scratch = randomized(again, seed=1)
    old, new = again.model.state_dict(), scratch.model.state_dict()
    assert scratch.fixed == again.fixed
    assert all(torch.equal(new[name], old[name]) for name in scratch.fixed)
    assert not any(
        torch.equal(new[n], old[n]) for n in scratch.new_parameters if n.endswith("lin.weight")
    )
    assert {*scratch.new_parameters, *scratch.fixed} == set(old)
