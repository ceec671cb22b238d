from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    set_seed,
)

from hf_transfer.data.encode import make_encoder
from hf_transfer.errors import UserError
from hf_transfer.models.head import read_logits
from hf_transfer.models.text_input import read_text_input, usable_positions
from hf_transfer.models.unpadded import run_unpadded
from hf_transfer.tasks import find_task
from tests.words import WORDS, word_tokenizer

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Any] = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL),
    "fnet": FNetConfig(**SMALL),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=66),
    "bart": BartConfig(
        vocab_size=40,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=66,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
SHORT, LONG = "red cold", "green warm small large round flat"


def _model(name: str, **changes: Any) -> Any:
    config = type(CONFIGS[name]).from_dict({**CONFIGS[name].to_dict(), **changes})
    set_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


@torch.no_grad()
def _logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return read_logits(model(**batch))


@pytest.mark.parametrize(
    ("name", "side", "found"),
    [
        ("bert", "left", "right"),
        ("bert", "right", "right"),
        ("roberta", "left", "right"),
        ("gpt2", "left", "right"),
        ("llama", "left", "left"),
        ("llama", "right", "right"),
        ("bart", "left", "right"),
        ("fnet", "left", "none"),
        ("fnet", "right", "none"),
    ],
)
def test_texts_are_padded_where_it_changes_no_answer(name: str, side: str, found: str) -> None:
    model = _model(name)
    tokenizer = word_tokenizer(padding_side=side)
    takes = read_text_input(model, tokenizer)
    assert takes
    assert takes.padding == found
    assert tokenizer.padding_side == ("left" if found == "left" else "right")
    if found != "none":
        alone = _logits(model, tokenizer([SHORT], return_tensors="pt"))
        beside = _logits(model, tokenizer([SHORT, LONG], padding=True, return_tensors="pt"))
        torch.testing.assert_close(beside[:1], alone)


def test_in_parts_of_one_length_a_text_has_the_answer_that_it_has_alone() -> None:
    model = _model("fnet")
    tokenizer = word_tokenizer(model_input_names=["input_ids"])
    takes = read_text_input(model, tokenizer)
    encoder = make_encoder(find_task("text-classification"), tokenizer, model.config, takes=takes)
    texts = (LONG, SHORT, "red", "old new")
    rows = [{**tokenizer(text), "length": len(tokenizer(text)["input_ids"])} for text in texts]
    batch = encoder.collate([{**row, "label": 0} for row in rows])
    del batch["labels"]
    with torch.no_grad():
        together = run_unpadded(model, **batch)["logits"]
    alone = [_logits(model, tokenizer([text], return_tensors="pt")) for text in texts]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("configured", "tokens", "pad"),
    [
        (0, {}, 0),  # both agree
        (3, {}, 0),  # the tokenizer's own
        (3, {"pad_token": None}, 3),  # the model's
        (None, {"pad_token": None}, 2),  # end of text
        (-1, {"pad_token": None}, 2),
        (99, {"pad_token": None}, 2),  # beyond the embeddings
        (None, {"pad_token": None, "eos_token": None}, 3),  # unknown
        (None, {"pad_token": None, "eos_token": None, "unk_token": None}, 1),  # beginning of text
    ],
)
def test_model_and_tokenizer_pad_with_the_same_token(
    configured: int | None, tokens: dict[str, None], pad: int
) -> None:
    model = _model("gpt2", pad_token_id=configured)
    tokenizer = word_tokenizer(**tokens)
    read_text_input(model, tokenizer)
    assert (model.config.pad_token_id, tokenizer.pad_token_id) == (pad, pad)


def test_a_pad_token_without_an_embedding_is_not_used() -> None:
    model = _model("gpt2")
    model.resize_token_embeddings(16)
    tokenizer = word_tokenizer(pad_token=None)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    read_text_input(model, tokenizer)
    assert tokenizer.pad_token == "</s>"


def test_a_model_that_numbers_positions_from_its_pad_token_keeps_it() -> None:
    model = _model("roberta", pad_token_id=3)
    tokenizer = word_tokenizer()
    read_text_input(model, tokenizer)
    assert (model.config.pad_token_id, tokenizer.pad_token) == (3, "<unk>")


def test_a_tokenizer_without_any_special_token_is_refused() -> None:
    tokenizer = word_tokenizer(pad_token=None, bos_token=None, eos_token=None, unk_token=None)
    with pytest.raises(UserError, match="no token to pad with"):
        read_text_input(_model("gpt2"), tokenizer)


@pytest.mark.parametrize(
    ("name", "positions"), [("bert", 66), ("roberta", 65), ("gpt2", 66), ("bart", 66)]
)
def test_a_text_as_long_as_there_are_usable_positions_is_read(name: str, positions: int) -> None:
    model = _model(name)
    assert usable_positions(model) == positions
    tokenizer = word_tokenizer()
    read_text_input(model, tokenizer)
    longest = " ".join([WORDS[0]] * (positions - 2))
    assert _logits(model, tokenizer([longest], return_tensors="pt")).isfinite().all()


def test_a_text_that_holds_the_end_token_is_no_end_of_a_text(tmp_path: Path) -> None:
    model = _model("bart")
    tokenizer = word_tokenizer()
    read_text_input(model, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["red </s> cold", "green warm old"]
    for each in (tokenizer, loaded):
        ids = each(texts)["input_ids"]
        assert [row.count(2) for row in ids] == [1, 1]
        _logits(model, each(texts, padding=True, return_tensors="pt"))


def test_a_processor_of_images_is_left_alone() -> None:
    assert read_text_input(None, object()) is None
