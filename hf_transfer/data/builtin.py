"""Datasets that need no network: digits, docstrings, Python code, messages in many languages."""

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

from hf_transfer.builtin.identifiers import collect_identifiers
from hf_transfer.data.splits import stratified_holdout
from hf_transfer.errors import UserError, unknown


def load_builtin(name: str) -> tuple[DatasetDict, str]:
    """Builtin dataset of this name, with splits `train` and `test`, and its description.

    Raises UserError for a name that is not in BUILTIN.
    """
    if name not in BUILTIN:
        raise unknown("builtin dataset", name, BUILTIN)
    load, description = BUILTIN[name]
    return load(), description


def load_digits() -> DatasetDict:
    """1,297 training and 500 test scans of handwritten digits.

    Columns: `image` (8 x 8, mode L, 0..255) and `label`. Source: E. Alpaydin and C. Kaynak, Optical
    Recognition of Handwritten Digits, UCI 1998, as scikit-learn carries it.
    """
    from sklearn.datasets import load_digits as load_scans

    scans = load_scans()
    images = [PILImage.fromarray(scan) for scan in _grey_levels(scans.images)]
    names = [str(digit) for digit in range(10)]
    features = Features({"image": Image(mode="L"), "label": ClassLabel(names=names)})
    columns: dict[str, list[Any]] = {
        "image": images,
        "label": [str(digit) for digit in scans.target],
    }
    return _split(columns, features, test_share=500 / len(images))


def _grey_levels(ink: np.ndarray) -> np.ndarray:
    """Grey levels 0..255 of ink counts 0..16."""
    return np.round(ink * (255 / 16)).astype(np.uint8)


def _split(columns: dict[str, list[Any]], features: Features, test_share: float) -> DatasetDict:
    """Stratified splits `train` and `test`, the same ones at every call."""
    names = features["label"].names
    labels = [names.index(label) for label in columns["label"]]
    train, test = stratified_holdout(labels, test_share, seed=0)
    return DatasetDict(
        train=_take(columns, train, features),
        test=_take(columns, test, features),
    )


def _take(columns: dict[str, list[Any]], rows: np.ndarray, features: Features) -> Dataset:
    taken = {column: list(map(values.__getitem__, rows)) for column, values in columns.items()}
    return Dataset.from_dict(taken, features)


# Label -> module or package whose sources hold its docstrings (decimal and io are written twice, in
# C and in Python). All have at least 60 docstrings in Python 3.11, 3.12 and 3.13 and are part of
# every distribution (tkinter is not).
MODULES = {name: name for name in (
    "asyncio", "doctest", "email", "http", "imaplib", "importlib", "inspect", "ipaddress",
    "logging", "mailbox", "multiprocessing", "pathlib", "pydoc", "tarfile", "threading", "turtle",
    "typing", "unittest", "urllib", "wsgiref", "xml",
)} | {"decimal": "_pydecimal", "io": "_pyio"}  # fmt: skip
DOCSTRINGS_PER_CLASS = 140
MIN_WORDS = 4  # of a docstring
MAX_WORDS = 100


def collect_docstrings() -> DatasetDict:
    """Docstrings of 23 modules of the running Python's library, 70 % in the training split.

    Columns: `text` and `label` (the module). The sources are parsed, never imported. About 2,500
    rows; they differ somewhat between Python versions.
    """
    library = Path(sysconfig.get_path("stdlib"))
    texts = ((text, name) for name in MODULES for text in _read_docstrings(library / MODULES[name]))
    return _text_splits(texts, sorted(MODULES), DOCSTRINGS_PER_CLASS)


def _text_splits(texts: Iterable[tuple[str, str]], names: list[str], limit: int) -> DatasetDict:
    """Splits of labelled texts, 70 % train: at most `limit` per class, no text of two classes."""
    classes: dict[str, set[str]] = {}
    for text, name in texts:
        classes.setdefault(text, set()).add(name)
    rows: dict[str, list[str]] = {name: [] for name in names}
    for text in sorted(classes, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if len(classes[text]) == 1:
            rows[min(classes[text])].append(text)
    columns: dict[str, list[str]] = {"text": [], "label": []}
    for name in names:
        columns["text"] += rows[name][:limit]
        columns["label"] += [name] * len(rows[name][:limit])
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return _split(columns, features, test_share=0.3)


def _read_docstrings(module: Path) -> Iterator[str]:
    """Docstrings, cut at 100 words, of a package's folder or a module's path without `.py`."""
    sources = sorted(module.rglob("*.py")) if module.is_dir() else [module.with_suffix(".py")]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for source in sources:
        if source.parent.name in ("test", "tests"):
            continue
        for node in ast.walk(ast.parse(source.read_bytes())):
            text = ast.get_docstring(node, clean=True) if isinstance(node, documented) else None
            if text and len(text.split()) >= MIN_WORDS:
                yield _cut(text)


def _cut(text: str) -> str:
    """First 100 words of a text, with its line breaks."""
    words = re.compile(r"\S+").finditer(text)
    last = next(islice(words, MAX_WORDS - 1, None), None)
    return text[: last.end()] if last else text


# Written in Latin letters, and with enough messages of MIN_MESSAGE_WORDS or more in Django 5.2.
LANGUAGES = (
    "af", "az", "ca", "cs", "cy", "da", "de", "eo", "es", "et", "eu", "fi", "fr", "ga", "gl", "hr",
    "hu", "id", "is", "it", "lt", "lv", "nb", "nl", "nn", "pl", "pt", "ro", "sk", "sl", "sq", "sv",
    "tr", "uz", "vi",
)  # fmt: skip
MESSAGES_PER_CLASS = 100
MIN_MESSAGE_WORDS = 6
PLACEHOLDER = re.compile(r"%\(\w+\)\w|%\w|\{[^}]*\}|<[^>]*>")  # and HTML tags


def collect_languages() -> DatasetDict:
    """Messages of Django in 35 languages, 70 % in the training split; about 3,500 rows.

    Columns: `text` and `label` (ISO 639-1). Read from its catalogues; Django itself is not
    imported. Raises UserError where it is not installed.
    """
    return _text_splits(_read_messages(), sorted(LANGUAGES), MESSAGES_PER_CLASS)


def _read_messages() -> Iterator[tuple[str, str]]:
    """Translated messages and their languages; placeholders and tags are removed."""
    django = importlib.util.find_spec("django")
    if not django or not django.submodule_search_locations:
        raise UserError(
            "builtin:languages reads the messages of Django, which is not installed",
            "pip install 'hf-transfer-learning[text-example]'",
        )
    package = Path(django.submodule_search_locations[0])
    for language in LANGUAGES:
        for path in sorted(package.rglob(f"locale/{language}/LC_MESSAGES/*.mo")):
            for message in _translations(path):
                words = PLACEHOLDER.sub(" ", message).split()
                if len(words) >= MIN_MESSAGE_WORDS:
                    yield " ".join(words), language


def _translations(path: Path) -> list[str]:
    """Translated messages of a compiled catalogue, each plural form as one of its own."""
    with path.open("rb") as file:
        # gettext has no public way to list its messages.
        catalogue = vars(gettext.GNUTranslations(file))["_catalog"]
    originals = [original if isinstance(original, str) else original[0] for original in catalogue]
    pairs = zip(originals, catalogue.values(), strict=True)
    return [translated for original, translated in pairs if original not in ("", translated)]


# Name -> function that makes it, and its description for a card.
BUILTIN: dict[str, tuple[Callable[[], DatasetDict], str]] = {
    "digits": (
        load_digits,
        "Scans of handwritten digits, 8 x 8 grey levels, from 43 people (Alpaydin and Kaynak, "
        "UCI 1998), as scikit-learn carries them.",
    ),
    "docstrings": (
        collect_docstrings,
        "Docstrings of the Python standard library, at most 100 words each; the label is the "
        "module.",
    ),
    "identifiers": (
        collect_identifiers,
        "Functions, class headers and imports of the Python standard library, without docstrings "
        "and comments; each word is tagged with what it stands for. The test modules are others "
        "than those of training.",
    ),
    "languages": (
        collect_languages,
        "Messages of the web framework Django, six words or longer, in 35 languages that are "
        "written in Latin letters, from the catalogues of its translators; the label is the "
        "language (ISO 639-1).",
    ),
}
