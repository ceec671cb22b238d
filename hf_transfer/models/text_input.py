"""What a network takes of a text: padding, positions, tokens; found by trying, once per model."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_transfer.data.encode import Padding, TextInput
from hf_transfer.errors import UserError
from hf_transfer.models.head import find_linear_head, headless, read_logits

log = logging.getLogger(__name__)

# A short text, and a longer one beside which it is padded.
PROBES = (
    "A short one.",
    "This text is longer, it goes on and on for a while, and then, after some more words, it ends.",
)
MAX_PROBE_LENGTH = 64  # tokens
# Relative difference of what the head reads, in float32: between a text alone and padded.
MAX_DIFFERENCE = 1e-4
STAND_INS = ("eos_token", "unk_token", "bos_token", "sep_token", "cls_token")


def read_text_input(model: Any, processor: Any) -> TextInput | None:
    """What a model takes of a text; None where its processor is no tokenizer.

    The tokenizer is set up for it: its pad token is one that the model has, the same in both
    configs, and it pads on the side that changes no answer. Raises UserError if it has no token to
    pad with.
    """
    if not isinstance(processor, PreTrainedTokenizerBase):
        return None
    if getattr(model.config, "is_encoder_decoder", False):
        # Their heads read the end token's state, and refuse a batch in which some have more of it.
        processor.split_special_tokens = True
        processor.init_kwargs["split_special_tokens"] = True  # the attribute alone is not saved
    vocabulary = _vocabulary(model)
    _settle_pad_token(model, processor, vocabulary)
    padding = _find_padding(model, processor)
    if padding == "none":
        log.warning(
            "%s: the answer to a text depends on the padding beside it: batches are computed "
            "in parts of one length",
            type(model).__name__,
        )
    side = "left" if padding == "left" else "right"
    if side != processor.padding_side:
        log.info("%s: texts are padded on the %s", type(model).__name__, side)
        processor.padding_side = side
    shortest = _shortest(model, processor) if padding == "none" else 1
    return TextInput(padding, usable_positions(model), vocabulary, shortest)


def usable_positions(model: Any) -> int | None:
    """The largest number of tokens of a text; None if there is no limit.

    RoBERTa and its relatives number the tokens from the pad token's id + 1: the positions before
    are never used.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding) and "position" in name
        if is_table and module.padding_idx is not None and module.num_embeddings == limit:
            return int(module.num_embeddings - module.padding_idx - 1)
    return limit if limit > 0 else None  # XLNet: -1


def _vocabulary(model: Any) -> int | None:
    """The number of rows of the table of token embeddings, where there is one."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # CANINE hashes characters
        return None
    return getattr(table, "num_embeddings", None)


# --- the pad token ---


def _settle_pad_token(
    model: Any, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None
) -> None:
    """Give model and tokenizer the same pad token, one that the model has an embedding for."""
    config = model.config
    largest = len(tokenizer) if vocabulary is None else min(vocabulary, len(tokenizer))
    configured = getattr(config, "pad_token_id", None)
    is_known = configured is not None and 0 <= configured < largest
    own = tokenizer.pad_token_id
    if own is None or own >= largest or (is_known and _numbers_positions_by_pad(model)):
        candidates = [configured if is_known else None]
        candidates += [getattr(tokenizer, f"{name}_id", None) for name in STAND_INS]
        fitting = (token for token in candidates if token is not None and token < largest)
        own = next(fitting, None)
        if own is None:
            raise UserError(
                f"the tokenizer of {type(model).__name__} has no token to pad with",
                "give it a pad_token that the model knows, and save it again",
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(own)
    for each in (config, config.get_text_config()):
        each.pad_token_id = tokenizer.pad_token_id


def _numbers_positions_by_pad(model: Any) -> bool:
    limit = getattr(model.config, "max_position_embeddings", None) or 0
    return (usable_positions(model) or 0) < limit


# --- the side ---


def _find_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> Padding:
    """The side on which padding changes nothing of what the head reads, the tokenizer's first."""
    own: Padding = "left" if tokenizer.padding_side == "left" else "right"
    other: Padding = "right" if own == "left" else "left"
    length = min(MAX_PROBE_LENGTH, usable_positions(model) or MAX_PROBE_LENGTH)
    short, long = (dict(tokenizer(text, truncation=True, max_length=length)) for text in PROBES)
    if len(short["input_ids"]) == len(long["input_ids"]):
        return own  # nothing is padded
    alone = read_head_input(model, tokenizer.pad([short], return_tensors="pt"))
    for side in (own, other):
        batch = tokenizer.pad([short, long], padding_side=side, return_tensors="pt")
        beside = read_head_input(model, batch)
        if beside.ndim == 3:  # of each token
            tokens = alone.shape[1]
            beside = beside[:, -tokens:] if side == "left" else beside[:, :tokens]
        difference = (beside[0] - alone[0]).norm() / alone[0].norm().clamp(min=1e-12)
        if difference <= MAX_DIFFERENCE:
            return side
    return "none"


def _shortest(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The smallest number of tokens that a model takes: CANINE and Funnel pool neighbours."""
    tokens = dict(tokenizer(PROBES[1]))
    for length in range(1, len(tokens["input_ids"])):
        short = {name: values[:length] for name, values in tokens.items()}
        try:
            read_head_input(model, tokenizer.pad([short], return_tensors="pt"))
        except RuntimeError:
            continue
        return length
    return len(tokens["input_ids"])


@torch.inference_mode()
def read_head_input(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the head reads of each row, or else its logits."""
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    was_training = model.training
    model.eval()
    try:
        if find_linear_head(model) is None:
            return read_logits(model(**inputs)).float()
        with headless(model):
            return read_logits(model(**inputs)).float()
    finally:
        model.train(was_training)
