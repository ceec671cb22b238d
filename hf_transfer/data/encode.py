"""Rows -> model inputs: an encoder a modality."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from datasets import Dataset

from hf_transfer.data.pixels import PIXELS_VERSION, Mode, read_image
from hf_transfer.data.sound_batches import (
    MAX_SECONDS,
    MAX_SECONDS_KEY,
    AudioInput,
    sound_batches,
)
from hf_transfer.data.sounds import read_sound, spectrum_features
from hf_transfer.data.token_labels import IGNORED
from hf_transfer.data.word_pieces import find_word_pieces
from hf_transfer.errors import UserError
from hf_transfer.tasks import Task

if TYPE_CHECKING:  # loading them takes two seconds
    from scipy.sparse import csr_matrix
    from transformers import (
        BaseImageProcessor,
        PreTrainedConfig,
        PreTrainedTokenizerBase,
        SequenceFeatureExtractor,
    )

Rows = list[dict[str, Any]]
Batch = dict[str, Any]
Collate = Callable[[Rows], Batch]
Padding = Literal["right", "left", "none"]  # the side that changes no answer; "none": both do

DEFAULT_MAX_LENGTH = 512  # tokens; where a model takes more, --max_length gives more
# In a batch, where padding changes answers: the number of positions of each row that are its own.
LENGTHS = "lengths"
POSITIONS = "positions"  # the same of activations, which may have others
# Libraries that decode and resize images.
LIBRARIES = {"pillow": "PIL", "torchvision": "torchvision", "transformers": "transformers"}
PLAIN_RATE = 16_000  # samples a second, of sounds as features of a linear model


@dataclass(frozen=True)
class TextInput:
    """What a network takes of a text (models/text_input.py)."""

    padding: Padding
    positions: int | None = None  # largest number of tokens
    vocabulary: int | None = None  # rows of the table of token embeddings
    shortest: int = 1  # smallest number of tokens


def as_it_is(batch: Batch) -> Batch:
    """The batch."""
    return batch


@dataclass(frozen=True)
class Encoder:
    """How rows of a task become a batch: `rows` prepares a split once, `collate` joins its rows."""

    rows: Callable[[Dataset], Dataset]
    collate: Collate
    light: Collate  # without what the first layers alone read: images; ids and masks remain
    by_length: bool
    padding: Padding | None = None  # of texts and sounds
    # Attributes of the processor to save with it: the length at which inputs are truncated.
    limit: Mapping[str, float] = field(default_factory=dict)
    equal_lengths: bool = False  # whether frozen layers read batches of rows of one length
    mode: Mode | None = None  # of images
    decodes: bool = False  # whether `collate` decodes files
    # The rest of what `collate` began, on the device of the network; twice does no harm.
    finish: Callable[[Batch], Batch] = field(default=as_it_is)
    # All that decides what a row becomes, except the row itself.
    facts: Mapping[str, Any] = field(default_factory=dict)

    def batch(self, rows: Rows) -> Batch:
        """What the network reads of rows, finished."""
        return self.finish(self.collate(rows))

    @property
    def pads_left(self) -> bool:
        """Whether the tokens of a shorter text stand at the end of its row."""
        return self.padding == "left"


def make_encoder(
    task: Task,
    processor: "BaseImageProcessor | PreTrainedTokenizerBase | SequenceFeatureExtractor",
    config: "PreTrainedConfig",
    max_length: float | None = None,
    takes: TextInput | AudioInput | None = None,
) -> Encoder:
    """Encoder for a task and a model's processor and config.

    `max_length` is in tokens of a text, in seconds of a sound. `takes` is what the network takes of
    it; without it, the tokenizer's settings hold, and sounds are padded on the right.
    """
    return ENCODERS[task.modality](processor, config, max_length, takes, task.labels_words)


def word_features(train: Dataset, test: Dataset) -> "tuple[csr_matrix, csr_matrix]":
    """TF-IDF weights (rows, words of the training split), sparse, of the texts of both splits."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # half a second, only where needed

    words = TfidfVectorizer(sublinear_tf=True)
    return words.fit_transform(_texts(train)), words.transform(_texts(test))


def which_word(train: Dataset, test: Dataset) -> "tuple[csr_matrix, csr_matrix]":
    """Which word of the training split (words, different words) each word of both splits is."""
    from sklearn.feature_extraction.text import CountVectorizer

    vocabulary = CountVectorizer(analyzer=lambda word: [word])
    known = vocabulary.fit_transform(itertools.chain.from_iterable(train["text"]))
    return known, vocabulary.transform(itertools.chain.from_iterable(test["text"]))


def _texts(split: Dataset) -> list[str]:
    return [" ".join(filter(None, (row["text"], row.get("text_pair")))) for row in split]


def sound_features(train: Dataset, test: Dataset) -> "tuple[np.ndarray, np.ndarray]":
    """Log spectra (rows, 402) of the first 30 s of the sounds of both splits."""
    return _spectra(train), _spectra(test)


def _spectra(split: Dataset) -> np.ndarray:
    sounds = (read_sound(row["audio"], PLAIN_RATE, MAX_SECONDS) for row in split)
    return np.stack(list(map(spectrum_features, sounds)))


def _image_encoder(
    processor: "BaseImageProcessor", config: "PreTrainedConfig", *_: object
) -> Encoder:
    facts = {**json.loads(processor.to_json_string()), "class": type(processor).__name__}
    facts |= {name: version(name) for name, module in LIBRARIES.items() if find_spec(module)}
    mode: Mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"
    facts["pixels"] = PIXELS_VERSION

    def collate(rows: Rows) -> Batch:
        images = [read_image(row["image"], mode) for row in rows]
        return {**processor(images, return_tensors="pt"), **_labels(rows)}

    return Encoder(
        rows=lambda split: split,
        collate=collate,
        light=_labels,
        by_length=False,
        mode=mode,
        decodes=True,
        facts=facts,
    )


def _labels(rows: Rows) -> Batch:
    return {"labels": torch.tensor([row["label"] for row in rows])}


def _text_encoder(
    tokenizer: "PreTrainedTokenizerBase",
    config: "PreTrainedConfig",
    max_length: float | None,
    takes: TextInput | None,
    labels_words: bool = False,
) -> Encoder:
    side: Padding = "left" if tokenizer.padding_side == "left" else "right"
    takes = takes or TextInput(side, getattr(config, "max_position_embeddings", None))
    limits = (max_length or DEFAULT_MAX_LENGTH, tokenizer.model_max_length, takes.positions)
    length = min(int(limit) for limit in limits if limit and limit > 0)  # XLNet: -1

    def collate(rows: Rows) -> Batch:
        inputs = [_without(row, "id", "label", "length") for row in rows]
        if takes.padding != "none":
            batch = tokenizer.pad(inputs, return_tensors="pt")
            return {**batch, **labels(rows, batch["input_ids"].shape[1])}
        lengths = [max(row["length"], takes.shortest) for row in rows]
        padded = tokenizer.pad(
            inputs, padding="max_length", max_length=max(lengths), return_tensors="pt"
        )
        return {**padded, **labels(rows, max(lengths)), LENGTHS: torch.tensor(lengths)}

    def labels(rows: Rows, width: int) -> Batch:
        return _word_labels(rows, width, takes.padding == "left") if labels_words else _labels(rows)

    tokenize = _tokenize_words if labels_words else _tokenize
    return Encoder(
        rows=partial(tokenize, tokenizer=tokenizer, length=length, vocabulary=takes.vocabulary),
        collate=collate,
        light=collate,
        by_length=True,
        padding=takes.padding,
        # So that truncation=True cuts a text where training did.
        limit={"model_max_length": length},
        # The tokens themselves are in the rows.
        facts={"pad": tokenizer.pad_token_id, "side": tokenizer.padding_side},
    )


def _without(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column not in columns}


def _tokenize(
    split: Dataset, tokenizer: "PreTrainedTokenizerBase", length: int, vocabulary: int | None
) -> Dataset:
    """A split with tokens and their number, "length", in place of texts."""

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        pairs = batch.get("text_pair")
        tokens = tokenizer(batch["text"], pairs, truncation=True, max_length=length)
        _require_embeddings(tokens["input_ids"], tokenizer, vocabulary)
        return {**tokens, "length": list(map(len, tokens["input_ids"]))}

    texts = [column for column in split.column_names if column not in ("label", "id")]
    return split.map(tokenize, batched=True, remove_columns=texts, desc="tokenizing")


def _word_labels(rows: Rows, width: int, pads_left: bool) -> Batch:
    """Labels of tokens (rows, width); padding has none."""
    labels = torch.full((len(rows), width), IGNORED)
    for number, row in enumerate(rows):
        start = width - row["length"] if pads_left else 0
        labels[number, start : start + row["length"]] = torch.tensor(row["label"])
    return {"labels": labels}


def _tokenize_words(
    split: Dataset, tokenizer: "PreTrainedTokenizerBase", length: int, vocabulary: int | None
) -> Dataset:
    """Windows of the rows of a split: tokens, their number and their labels, in place of words."""
    pieces = find_word_pieces(tokenizer, length, split["text"])

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in ("id", "label", "length", *pieces.frame)}
        words = pieces.tokens(batch["text"])
        for row, tokens, labels in zip(batch["id"], words, batch["label"], strict=True):
            for window in pieces.windows(tokens, labels):
                for name, value in {"id": row, **window}.items():
                    rows[name].append(value)
        _require_embeddings(rows["input_ids"], tokenizer, vocabulary)
        return rows

    return split.map(tokenize, batched=True, remove_columns=split.column_names, desc="tokenizing")


def _require_embeddings(
    rows: list[list[int]], tokenizer: "PreTrainedTokenizerBase", vocabulary: int | None
) -> None:
    """Raise UserError for a token beyond the model's table of embeddings."""
    largest = max(itertools.chain.from_iterable(rows), default=0)
    if vocabulary is not None and largest >= vocabulary:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"the token {token!r} has the number {largest}, the model has {vocabulary} "
            f"embeddings, its tokenizer {len(tokenizer)} tokens",
            f"load the model, call resize_token_embeddings({len(tokenizer)}), and save it again",
        )


def _audio_encoder(
    extractor: "SequenceFeatureExtractor",
    config: "PreTrainedConfig",
    max_length: float | None,
    takes: AudioInput | None,
    *_: object,
) -> Encoder:
    sounds = sound_batches(extractor, max_length, takes)
    padding = sounds.takes.padding

    def light(rows: Rows) -> Batch:
        lengths = {LENGTHS: sounds.widths(rows)} if padding == "none" else {}
        return {**sounds.masks(rows), **lengths, **_labels(rows)}

    return Encoder(
        rows=sounds.with_lengths if padding else lambda split: split,
        collate=lambda rows: {**light(rows), **sounds.read(rows)},
        light=light,
        by_length=padding is not None,
        padding=padding,
        limit={MAX_SECONDS_KEY: sounds.seconds},
        equal_lengths=padding is not None,
        facts=sounds.facts,
    )


# Modality -> encoder of (processor, config, max_length, takes, labels_words).
ENCODERS: dict[str, Callable[..., Encoder]] = {
    "image": _image_encoder,
    "text": _text_encoder,
    "audio": _audio_encoder,
}
