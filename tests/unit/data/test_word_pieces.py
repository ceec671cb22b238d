"""Words -> tokens -> words, over tokenizers of every kind: no tag is lost or shifted."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from hf_transfer.data.encode import Encoder, TextInput, make_encoder
from hf_transfer.data.token_labels import IGNORED
from hf_transfer.data.word_pieces import find_space, find_windows
from hf_transfer.tasks import find_task

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "The first word of a text, and then others: 12 of them.",
    "Zoë isn't in São Paulo; she reads 東京 and Москва all day long.",
    "internationalisation of unbelievably long words, e-mails and so on",
]
ODD_WORDS = (
    *(
        "",
        " ",
        "\u200b",
        "\u00ad",
        "\ufeff",
        "\n",
        "é",
        "e\u0301",
        "ﬁ",
        "東京",
        "Москва",
        "🤗",
        "👩‍👩‍👧",
    ),
    *(
        "don't",
        "e-mail",
        "U.S.",
        "12,5",
        "x" * 90,
        "ab" * 200,
        "New York",
        "[SEP]",
        "▁",
        "Ġ",
        "##a",
    ),
)
SENTENCES = 200


def _sentences() -> list[list[str]]:
    rng = np.random.default_rng(0)
    plain = " ".join(TEXTS).split()
    sentences = []
    for _ in range(SENTENCES):
        count = int(rng.integers(1, 40))
        odd = rng.random(count) < 0.3
        sentences.append([str(rng.choice(ODD_WORDS if own else plain)) for own in odd])
    return sentences


def _train(model: Any, trainer: Any, pre_tokenizer: Any = None, **parts: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(TEXTS * 5, trainer(vocab_size=300, special_tokens=SPECIAL))
    return tokenizer


def _framed(tokenizer: Tokenizer, single: str = "[CLS] $A [SEP]") -> Tokenizer:
    used = [(name, tokenizer.token_to_id(name)) for name in SPECIAL if name in single]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    return tokenizer


def _finished(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**names, **options})


def _word_piece() -> Any:
    lower = normalizers.BertNormalizer()
    pieces = _train(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer,
        pre_tokenizers.BertPreTokenizer(),
        normalizer=lower,
    )
    return _finished(_framed(pieces))


def _byte_level(add_prefix_space: bool, single: str = "[CLS] $A [SEP]") -> Any:
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)

    def trainer(**options: Any) -> Any:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return trainers.BpeTrainer(**{**options, "vocab_size": 600}, initial_alphabet=alphabet)

    return _finished(_framed(_train(models.BPE(), trainer, bytes_), single))


def _metaspace(model: Any, trainer: Any, scheme: str = "always", single: str = "$A [SEP]") -> Any:
    space = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return _finished(_framed(_train(model, trainer, space, decoder=decoders.Metaspace()), single))


def _unigram(**options: Any) -> Any:
    return trainers.UnigramTrainer(**options, unk_token="[UNK]")


def _legacy_llama() -> Any:
    bpe = _train(models.BPE(unk_token="[UNK]"), trainers.BpeTrainer, pre_tokenizers.Metaspace())
    bpe.pre_tokenizer = None
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _finished(_framed(bpe, "[CLS] $A"))


def _words() -> Any:
    level = models.WordLevel(unk_token="[UNK]")
    return _finished(_framed(_train(level, trainers.WordLevelTrainer, pre_tokenizers.Whitespace())))


def _dropping() -> Any:
    pieces = _train(models.BPE(), trainers.BpeTrainer, pre_tokenizers.Whitespace())
    return _finished(_framed(pieces), unk_token=None)


class _SlowCharacters(PreTrainedTokenizer):
    """A tokenizer in Python: a token per character; blanks give none."""

    def __init__(self, **options: Any) -> None:
        self.known = {
            character: number for number, character in enumerate(sorted(set("".join(TEXTS))))
        }
        names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
        super().__init__(**{**names, **options})

    @property
    def vocab_size(self) -> int:
        return len(self.known)

    def get_vocab(self) -> dict[str, int]:
        return {**self.known, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [character for character in text if not character.isspace()]

    def _convert_token_to_id(self, token: str) -> int:
        return self.known.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index: int) -> str:
        return {number: name for name, number in self.known.items()}.get(index, "[UNK]")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "WordPiece": _word_piece,
    "byte-level BPE": lambda: _byte_level(False),
    "byte-level BPE with a leading space": lambda: _byte_level(True),
    "byte-level BPE without special tokens": lambda: _byte_level(False, "$A"),
    "byte-level BPE with one special token": lambda: _byte_level(False, "[CLS] $A"),
    "Unigram": lambda: _metaspace(models.Unigram(), _unigram),
    "Unigram, first word alone with a space": lambda: _metaspace(
        models.Unigram(), _unigram, "first"
    ),
    "BPE of SentencePiece": lambda: _metaspace(models.BPE(unk_token="[UNK]"), trainers.BpeTrainer),
    "BPE of the first Llama": _legacy_llama,
    "word level": _words,
    "BPE that drops unknown characters": _dropping,
    "characters, in Python": _SlowCharacters,
}


def _encoder(tokenizer: Any, length: int | None = None, padding: str = "right") -> Encoder:
    tokenizer.padding_side = "left" if padding == "left" else "right"
    takes = TextInput(padding)  # type: ignore[arg-type]
    return make_encoder(find_task("token-classification"), tokenizer, object(), length, takes)


def _rows(sentences: list[list[str]]) -> Dataset:
    """Every word has a label of its own: its number among all words."""
    ends = np.cumsum([0, *map(len, sentences)])
    return Dataset.from_dict(
        {
            "text": sentences,
            "label": [list(range(*pair)) for pair in itertools.pairwise(ends.tolist())],
            "id": [f"train/{number}" for number in range(len(sentences))],
        }
    )


@pytest.mark.parametrize("length", [None, 24])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_word_comes_back_exactly_once_and_in_order(name: str, length: int | None) -> None:
    sentences = _sentences()
    rows = _encoder(TOKENIZERS[name](), length).rows(_rows(sentences))
    labels = list(itertools.chain.from_iterable(rows["label"]))
    answered = [label for label in labels if label != IGNORED]
    assert answered == list(range(sum(map(len, sentences))))
    assert max(rows["length"]) <= (length or 512)
    assert all(map(np.array_equal, map(len, rows["label"][:]), rows["length"]))
    if length:
        assert len(rows) > len(sentences)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if "Python" not in name])
def test_the_tokens_of_a_word_are_those_that_word_ids_name(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    sentences = _sentences()
    space = find_space(tokenizer)
    rows = _encoder(tokenizer).rows(_rows(sentences))
    compared = 0
    for words, row in zip(sentences, rows, strict=False):
        spaced = [space * bool(number) + word for number, word in enumerate(words)]
        whole = tokenizer(spaced, is_split_into_words=True)
        owners = whole.word_ids()
        if len(set(owners) - {None}) < len(words) or len(rows) != len(sentences):
            continue  # a word that gives no token, or windows
        firsts = [owners.index(number) for number in range(len(words))]
        assert [place for place, label in enumerate(row["label"]) if label != IGNORED] == firsts
        assert row["input_ids"] == whole["input_ids"]
        compared += 1
    assert compared > 10 or len(rows) != len(sentences)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_of_running_text_give_the_tokens_of_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    (row,) = _encoder(tokenizer).rows(_rows([TEXTS[0].split()]))
    assert row["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


@pytest.mark.parametrize("padding", ["right", "left", "none"])
def test_labels_stand_at_their_tokens_in_a_padded_batch(padding: str) -> None:
    encoder = _encoder(_word_piece(), padding=padding)
    rows = list(encoder.rows(_rows([["text"], ["The", "first", "word"]])))
    batch = encoder.collate(rows)
    assert batch["labels"].shape == batch["input_ids"].shape
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        firsts = [
            token for token, label in zip(row["input_ids"], row["label"], strict=True) if label >= 0
        ]
        assert ids[labels != IGNORED].tolist() == firsts


def test_windows_share_words_and_answer_each_where_it_has_more_context() -> None:
    windows = find_windows([1] * 20, 8)
    assert [(each.start, each.end) for each in windows] == [(0, 8), (6, 14), (12, 20)]
    assert [(each.first, each.last) for each in windows] == [(0, 7), (7, 13), (13, 20)]


@pytest.mark.parametrize("capacity", [1, 2, 5, 30])
def test_windows_hold_whole_words_and_end_for_words_of_any_length(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    for _ in range(50):
        lengths = rng.integers(1, capacity + 1, int(rng.integers(1, 60))).tolist()
        windows = find_windows(lengths, capacity)
        assert all(sum(lengths[each.start : each.end]) <= capacity for each in windows)
        assert all(each.start <= each.first < each.last <= each.end for each in windows)
        answered = [range(each.first, each.last) for each in windows]
        assert list(itertools.chain.from_iterable(answered)) == list(range(len(lengths)))
