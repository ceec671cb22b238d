"""Datasets that need no network: handwritten digits, docstrings, messages in many languages."""

import ast
import gettext
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from hf_transfer.data.splits import stratified_holdout
from hf_transfer.errors import UserError, unknown


def load_builtin(name: str) -> tuple[DatasetDict, str]:
    """The builtin dataset of this name, with splits `train` and `test`, and what it is in plain words.

    Raises UserError for a name that is not in BUILTIN.
    """
    if name not in BUILTIN:
        raise unknown("builtin dataset", name, BUILTIN)
    load, description = BUILTIN[name]
    return load(), description


def load_digits() -> DatasetDict:
    """1,297 train and 500 test scans of handwritten digits, columns `image` (8 x 8, mode L, 0..255) and `label`.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, as scikit-learn carries it.
    """
    from sklearn.datasets import load_digits as load_scans

    scans = load_scans()
    images = [PILImage.fromarray(scan) for scan in _grey_levels(scans.images)]
    features = Features(
        {"image": Image(mode="L"), "label": ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    rows: dict[str, list[Any]] = {
        "image": images,
        "label": [str(digit) for digit in scans.target],
    }
    return _split(rows, features, test_share=500 / len(images))


def _grey_levels(ink: np.ndarray) -> np.ndarray:
    """Grey levels 0..255 of counts of ink 0..16."""
    return np.round(ink * (255 / 16)).astype(np.uint8)


def _split(columns: dict[str, list[Any]], features: Features, test_share: float) -> DatasetDict:
    """Stratified splits `train` and `test`, the same ones at every call."""
    names = features["label"].names
    kept, held = stratified_holdout(
        [names.index(label) for label in columns["label"]], test_share, seed=0
    )
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {c: [values[row] for row in rows] for c, values in columns.items()}, features
            )
            for split, rows in (("train", kept), ("test", held))
        }
    )


# Label -> module or package whose sources hold its docstrings (decimal and io are written twice, in C and in Python).
# All have at least 60 docstrings in Python 3.11, 3.12 and 3.13 and are part of every distribution (tkinter is not).
MODULES = {name: name for name in (
    "asyncio", "doctest", "email", "http", "imaplib", "importlib", "inspect", "ipaddress", "logging", "mailbox",
    "multiprocessing", "pathlib", "pydoc", "tarfile", "threading", "turtle", "typing", "unittest", "urllib", "wsgiref",
    "xml",
)} | {"decimal": "_pydecimal", "io": "_pyio"}  # fmt: skip
DOCSTRINGS_A_CLASS, FEWEST_WORDS, MOST_WORDS = 140, 4, 100


def collect_docstrings() -> DatasetDict:
    """Docstrings of 23 modules of the running Python's library, columns `text` and `label` (the module), 70 % train.

    The sources are parsed, never imported. About 2,500 rows; another Python version has somewhat other ones.
    """
    library = Path(sysconfig.get_path("stdlib"))
    texts = ((text, name) for name in MODULES for text in _read_docstrings(library / MODULES[name]))
    return _as_texts(texts, sorted(MODULES), DOCSTRINGS_A_CLASS)


def _as_texts(texts: Iterable[tuple[str, str]], names: list[str], most: int) -> DatasetDict:
    """Splits of texts with their labels, 70 % train: at most so many a class, none that stands in two classes."""
    owners: dict[str, set[str]] = {}
    for text, name in texts:
        owners.setdefault(text, set()).add(name)
    rows: dict[str, list[str]] = {name: [] for name in names}
    for text in sorted(owners, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if len(owners[text]) == 1:
            rows[min(owners[text])].append(text)
    kept = [(text, name) for name in names for text in rows[name][:most]]
    columns = {"text": [text for text, _ in kept], "label": [name for _, name in kept]}
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return _split(columns, features, test_share=0.3)


def _read_docstrings(module: Path) -> Iterator[str]:
    """The docstrings below a module's path without `.py`, or a package's folder: at most 100 words each."""
    sources = sorted(module.rglob("*.py")) if module.is_dir() else [module.with_suffix(".py")]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for source in sources:
        if source.parent.name in ("test", "tests"):
            continue
        for node in ast.walk(ast.parse(source.read_bytes())):
            text = ast.get_docstring(node, clean=True) if isinstance(node, documented) else None
            if text and len(text.split()) >= FEWEST_WORDS:
                yield _cut(text)


def _cut(text: str) -> str:
    """The first 100 words of a text with its line breaks."""
    words = re.compile(r"\S+").finditer(text)
    last = next(islice(words, MOST_WORDS - 1, None), None)
    return text[: last.end()] if last else text


# Written in Latin letters, and with enough messages of at least FEWEST_WORDS_OF_MESSAGE words in Django 5.2.
LANGUAGES = (
    "af", "az", "ca", "cs", "cy", "da", "de", "eo", "es", "et", "eu", "fi", "fr", "ga", "gl", "hr", "hu", "id", "is",
    "it", "lt", "lv", "nb", "nl", "nn", "pl", "pt", "ro", "sk", "sl", "sq", "sv", "tr", "uz", "vi",
)  # fmt: skip
MESSAGES_A_CLASS, FEWEST_WORDS_OF_MESSAGE = 100, 6
PLACEHOLDER = re.compile(
    r"%\(\w+\)\w|%\w|\{[^}]*\}|<[^>]*>"
)  # what a program puts in, and tags of HTML


def collect_languages() -> DatasetDict:
    """Messages of Django in 35 languages, columns `text` and `label` (ISO 639-1), 70 % train; about 3,500 rows.

    Read from its catalogues; Django itself is not imported. Raises UserError where it is not installed.
    """
    return _as_texts(_read_messages(), sorted(LANGUAGES), MESSAGES_A_CLASS)


def _read_messages() -> Iterator[tuple[str, str]]:
    """Translated messages and their languages; placeholders and tags are taken out."""
    found = importlib.util.find_spec("django")
    if not found or not found.submodule_search_locations:
        raise UserError(
            "builtin:languages reads the messages of Django, which is not installed",
            "pip install 'hf-transfer-learning[text-example]'",
        )
    for language in LANGUAGES:
        for path in sorted(
            Path(found.submodule_search_locations[0]).rglob(f"locale/{language}/LC_MESSAGES/*.mo")
        ):
            for message in _translations(path):
                words = PLACEHOLDER.sub(" ", message).split()
                if len(words) >= FEWEST_WORDS_OF_MESSAGE:
                    yield " ".join(words), language


def _translations(path: Path) -> list[str]:
    """The messages of a compiled catalogue that are translated, each plural form by itself."""
    with path.open("rb") as file:
        catalogue = vars(gettext.GNUTranslations(file))[
            "_catalog"
        ]  # gettext has no public way to list its messages
    originals = [original if isinstance(original, str) else original[0] for original in catalogue]
    pairs = zip(originals, catalogue.values(), strict=True)
    return [translated for original, translated in pairs if original not in ("", translated)]


# Name -> how it is made, and what a card says of it.
BUILTIN: dict[str, tuple[Callable[[], DatasetDict], str]] = {
    "digits": (
        load_digits,
        "Scans of handwritten digits, 8 x 8 grey levels, from 43 people (Alpaydin and Kaynak, UCI 1998), as "
        "scikit-learn carries them.",
    ),
    "docstrings": (
        collect_docstrings,
        "Docstrings of the Python standard library, at most 100 words each; the label is the module.",
    ),
    "languages": (
        collect_languages,
        "Messages of the web framework Django, six words or longer, in 35 languages that are written in Latin letters, "
        "from the catalogues of its translators; the label is the language (ISO 639-1).",
    ),
}
