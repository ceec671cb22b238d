"""Datasets that need no network: handwritten digits, rendered letters, docstrings of the standard library.

`letters` is the source task of the checkpoint that we ship, `digits` and `docstrings` are small target tasks.
No digit is ever drawn in `letters`.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from hf_transfer.data.letters import render_letters, to_bytes
from hf_transfer.data.splits import stratified_holdout
from hf_transfer.errors import unknown


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
    pictures = [PILImage.fromarray(scan) for scan in to_bytes(scans.images)]
    features = Features({"image": Image(mode="L"), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    rows: dict[str, list[Any]] = {"image": pictures, "label": [str(digit) for digit in scans.target]}
    return _split(rows, features, test_share=500 / len(pictures))


def _split(columns: dict[str, list[Any]], features: Features, test_share: float) -> DatasetDict:
    """Stratified splits `train` and `test`, the same ones at every call."""
    names = features["label"].names
    kept, held = stratified_holdout([names.index(label) for label in columns["label"]], test_share, seed=0)
    return DatasetDict(
        {
            split: Dataset.from_dict({c: [values[row] for row in rows] for c, values in columns.items()}, features)
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
    names = sorted(MODULES)
    owners: dict[str, set[str]] = {}
    for name in names:
        for text in _read_docstrings(Path(sysconfig.get_path("stdlib"), MODULES[name])):
            owners.setdefault(text, set()).add(name)
    rows: dict[str, list[str]] = {name: [] for name in names}
    for text in sorted(owners, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if len(owners[text]) == 1:
            rows[min(owners[text])].append(text)
    kept = [(text, name) for name in names for text in rows[name][:DOCSTRINGS_A_CLASS]]
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


# Name -> how it is made, and what a card says of it.
BUILTIN: dict[str, tuple[Callable[[], DatasetDict], str]] = {
    "digits": (
        load_digits,
        "Scans of handwritten digits, 8 x 8 grey levels, from 43 people (Alpaydin and Kaynak, UCI 1998), as "
        "scikit-learn carries them.",
    ),
    "letters": (
        render_letters,
        "Letters of five alphabets (Latin, Greek, Cyrillic, Armenian, Georgian), drawn by a program from the fonts "
        "that matplotlib carries, with random thickness, slant, elastic distortion and blur, scanned to 8 x 8 grey "
        "levels. No digit is among them, though some letters resemble digits (O, Z, S, З).",
    ),
    "docstrings": (
        collect_docstrings,
        "Docstrings of the Python standard library, at most 100 words each; the label is the module.",
    ),
}
