"""Words -> tokens and back: every word has a token that answers for it, in one window alone.

Each word is tokenized as a text of its own, so that its tokens are known whatever the tokenizer is.
The `word_ids` of fast tokenizers skip words that give no token, and slow ones have none.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_transfer.data.token_labels import IGNORED
from hf_transfer.errors import UserError

if TYPE_CHECKING:  # loading them takes two seconds
    from transformers import PreTrainedTokenizerBase

PROBE = "The first word of a text, and then others: 12 of them."
SAMPLE = 100  # words of the data that are tried where a tokenizer knows none of the probe
STRIDE = 0.25  # of a window's tokens, which the next window repeats as context
# Tokens in place of a word that gives none.
STAND_INS = ("unk_token", "mask_token", "sep_token", "eos_token", "cls_token", "bos_token")

Frame = tuple[list[int], int, list[int]]  # values before, of each token, and behind


@dataclass(frozen=True)
class Window:
    """Words `start` to `end` of a row; `first` to `last` of them are answered here."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class WordPieces:
    """How a tokenizer's words become windows.

    `space` stands before every word but the first, as in running text; `stand_in` is the token of a
    word that gives none. `frame` has the special tokens of each input of the network.
    """

    tokenizer: "PreTrainedTokenizerBase"
    length: int
    space: str
    stand_in: int
    frame: Mapping[str, Frame]

    def tokens(self, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """The tokens of every word of rows of words; each has one at least."""
        texts = [_texts(words, self.space) for words in rows]
        different = list(dict.fromkeys(itertools.chain.from_iterable(texts)))
        tokens = zip(different, _tokenize(self.tokenizer, different), strict=True)
        known = {text: own or [self.stand_in] for text, own in tokens}
        return [list(map(known.__getitem__, row)) for row in texts]

    def windows(self, words: Sequence[list[int]], labels: Sequence[int]) -> list[dict[str, Any]]:
        """The windows of a row: inputs of the network, "label" of each token, "length".

        A word's first token has its label, in the window that answers it; all others IGNORED. A
        word that is longer than a window is cut.
        """
        before, _, behind = self.frame["input_ids"]
        capacity = max(1, self.length - len(before) - len(behind))
        words = [tokens[:capacity] for tokens in words]
        windows = []
        for window in find_windows(list(map(len, words)), capacity):
            inside = words[window.start : window.end]
            ids = list(itertools.chain.from_iterable(inside))
            label = [IGNORED] * len(before)
            for number, tokens in enumerate(inside, window.start):
                is_answered = window.first <= number < window.last
                label += [labels[number] if is_answered else IGNORED]
                label += [IGNORED] * (len(tokens) - 1)
            row: dict[str, Any] = {}
            for name, (start, value, end) in self.frame.items():
                row[name] = [*start, *(ids if name == "input_ids" else [value] * len(ids)), *end]
            label += [IGNORED] * len(behind)
            windows.append({**row, "label": label, "length": len(label)})
        return windows


def find_word_pieces(
    tokenizer: "PreTrainedTokenizerBase", length: int, rows: Iterable[Sequence[str]]
) -> WordPieces:
    """How a tokenizer's words become windows of at most `length` tokens; found by trying.

    `rows` are some of the data. Raises UserError for a tokenizer that makes nothing of a word, or
    has no token to stand for such a word.
    """
    some = itertools.islice(itertools.chain.from_iterable(rows), SAMPLE)
    stand_ins = (getattr(tokenizer, f"{name}_id", None) for name in STAND_INS)
    stand_in = next((token for token in stand_ins if token is not None), tokenizer.pad_token_id)
    return WordPieces(
        tokenizer=tokenizer,
        length=length,
        space=find_space(tokenizer),
        stand_in=int(stand_in),
        frame=_find_frame(tokenizer, [*PROBE.split(), *some]),
    )


def find_space(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What stands before a word so that it gives the tokens that it gives in running text."""
    (running,) = _tokenize(tokenizer, [PROBE])
    for space in ("", " "):
        pieces = _tokenize(tokenizer, _texts(PROBE.split(), space))
        if list(itertools.chain.from_iterable(pieces)) == running:
            return space
    return ""


def find_windows(lengths: Sequence[int], capacity: int) -> list[Window]:
    """Windows of whole words, of at most `capacity` tokens, that answer each word once.

    Neighbours share words: each of these is answered where it has more context.
    """
    spans = []
    start = 0
    while True:
        end = start
        room = capacity - lengths[start]
        while room >= 0:
            end += 1
            room -= lengths[end] if end < len(lengths) else capacity + 1
        spans.append((start, end))
        if end == len(lengths):
            break
        room = min(int(capacity * STRIDE), capacity - lengths[end])
        start = end
        while start > spans[-1][0] + 1 and lengths[start - 1] <= room:
            start -= 1
            room -= lengths[start]
    borders = [(start + end + 1) // 2 for (_, end), (start, _) in itertools.pairwise(spans)]
    answered = itertools.pairwise([0, *borders, len(lengths)])
    windows = (Window(*span, *own) for span, own in zip(spans, answered, strict=True))
    return [window for window in windows if window.first < window.last]


def _find_frame(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> Mapping[str, Frame]:
    """The special tokens around a text, and the values of a network's other inputs."""
    for text in texts:
        (inside,) = _tokenize(tokenizer, [text])
        whole = dict(tokenizer(text))
        for start in range(len(whole["input_ids"]) - len(inside) + 1 if inside else 0):
            end = start + len(inside)
            if whole["input_ids"][start:end] == inside:
                return {
                    name: (values[:start], values[start], values[end:])
                    for name, values in whole.items()
                }
    raise UserError(
        f"{type(tokenizer).__name__} makes no tokens of the words of these data",
        "give a tokenizer that was made for their language",
    )


def _texts(words: Sequence[str], space: str) -> list[str]:
    return [word if number == 0 else space + word for number, word in enumerate(words)]


def _tokenize(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"])
