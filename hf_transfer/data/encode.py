"""Raw rows -> model inputs. With tasks.py the only place that branches on modality."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_transfer.tasks import Task

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]

LONGEST = 512  # tokens; models that take more are asked for it with --max_length
# Tokenizers without a limit of their own say 1e30.
UNLIMITED = 1_000_000
# Of the libraries that read and change pictures, where they are installed.
MODULES = {"pillow": "PIL", "torchvision": "torchvision"}
MOST_PIXELS_A_SIDE = 32  # of pictures as features of a plain classifier


@dataclass(frozen=True)
class Encoder:
    """How the rows of a task become a batch: `rows` prepares a split once, `collate` joins prepared rows."""

    rows: Callable[[Dataset], Dataset]
    collate: Collate
    light: Collate  # without what the first layers alone read: pictures; ids and masks stay
    by_length: bool
    pads_left: bool = False
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # all that decides what a row becomes, but the row


def make_encoder(task: Task, processor: Any, config: Any, max_length: int | None = None) -> Encoder:
    """The encoder for a task and a model's processor and config."""
    if task.modality == "image":
        collate = _image_collate(processor, config)
        libraries = {name: version(name) for name, module in MODULES.items() if find_spec(module)}
        facts = {
            **json.loads(processor.to_json_string()),
            "class": type(processor).__name__,
            **libraries,
        }
        return Encoder(lambda split: split, collate, _labels_only, by_length=False, facts=facts)
    if processor.pad_token is None:  # decoders such as GPT-2 were pretrained without padding
        processor.pad_token = processor.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = processor.pad_token_id
    length = _text_length(processor, config, max_length)
    return Encoder(
        rows=lambda split: split.map(
            lambda batch: _tokenize(processor, batch, length),
            batched=True,
            remove_columns=[name for name in split.column_names if name not in ("label", "id")],
            desc="tokenizing",
        ),
        collate=_text_collate(processor),
        light=_text_collate(processor),
        by_length=True,
        pads_left=processor.padding_side == "left",
        facts={
            "pad": processor.pad_token_id,
            "side": processor.padding_side,
        },  # tokens are in the rows
    )


def as_plain_features(task: Task, train: Dataset, test: Dataset) -> tuple[Any, Any]:
    """Features (rows, columns) of both splits that know no pretraining.

    Texts: TF-IDF weights of the words of the training split, sparse. Pictures: grey levels in 0..1, side <= 32.
    """
    if task.modality == "text":
        words = TfidfVectorizer(sublinear_tf=True)
        return words.fit_transform(_texts(train)), words.transform(_texts(test))
    side = min(MOST_PIXELS_A_SIDE, *(min(image.size) for image in train["image"][:100]))
    return _pixels(train, side), _pixels(test, side)


def _texts(split: Dataset) -> list[str]:
    return [" ".join(filter(None, (row["text"], row.get("text_pair")))) for row in split]


def _pixels(split: Dataset, side: int) -> np.ndarray:
    return np.stack(
        [
            np.asarray(row["image"].convert("L").resize((side, side))).ravel() / 255.0
            for row in split
        ]
    )


def _image_collate(processor: Any, config: Any) -> Collate:
    mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = processor([row["image"].convert(mode) for row in rows], return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    return collate


def _labels_only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"labels": torch.tensor([row["label"] for row in rows])}


def _text_collate(processor: Any) -> Collate:
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = [
            {k: v for k, v in row.items() if k not in ("id", "label", "length")} for row in rows
        ]
        batch = processor.pad(inputs, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    return collate


def _tokenize(processor: Any, batch: dict[str, Any], length: int) -> dict[str, Any]:
    encoded = processor(batch["text"], batch.get("text_pair"), truncation=True, max_length=length)
    return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}


def _text_length(processor: Any, config: Any, asked: int | None) -> int:
    """Tokens a text may have: what was asked, but never more than tokenizer and position embeddings take."""
    limits = [
        processor.model_max_length,
        getattr(config, "max_position_embeddings", None) or UNLIMITED,
    ]
    return min(asked or LONGEST, *(int(limit) for limit in limits if limit > 0))  # XLNet says -1
