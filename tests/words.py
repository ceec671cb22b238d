"""A tokenizer of whole words, made here."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("red", "green", "blue", "cold", "warm", "small", "large", "round", "flat", "old", "new")
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def word_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of WORDS that puts <s> and </s> around a text; a special token None is left out.

    Numbers: <pad> 0, <s> 1, </s> 2, <unk> 3, then [CLS] and WORDS.
    """
    numbers = {word: number for number, word in enumerate((*SPECIAL.values(), "[CLS]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # takes "</s>" apart
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    given = {name: token for name, token in {**SPECIAL, **settings}.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given)
