import runpy
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_from_disk

from tests.conftest import ROOT, Outcome

Recipe = Callable[..., Outcome]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What the script that draws the letters defines."""
    return runpy.run_path(str(ROOT / "recipes" / "letters" / "draw_letters.py"))


def test_no_letter_is_a_digit(script: dict[str, Any]) -> None:
    letters = script["LETTERS"]
    assert len(letters) == len(set(letters)) == 167
    assert all(unicodedata.category(letter) in ("Lu", "Ll", "Lo") for letter in letters)


def test_every_letter_has_glyphs_in_the_fonts(script: dict[str, Any]) -> None:
    _, owners = script["glyph_fields"]()
    assert min(len(fonts) for fonts in owners) >= 1


def test_letters_are_the_same_for_the_same_seed(script: dict[str, Any]) -> None:
    first, second, other = (
        script["draw_letters"](50, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], other[0])


def test_letters_are_saved_in_two_splits_and_never_over_another_folder(
    recipe: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "letters"
    ended = recipe("letters/draw_letters", "--output_dir", folder)
    assert ended.code == 0, ended.err
    rows = load_from_disk(str(folder))
    assert {name: len(split) for name, split in rows.items()} == {"train": 50_000, "test": 3_000}
    assert rows["train"][0]["image"].size == (8, 8)
    assert [path.name for path in folder.parent.iterdir()] == ["letters"]
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    ended = recipe("letters/draw_letters", "--output_dir", folder)
    assert ended.code == 2
    assert "exists already" in ended.err
    assert before == sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_without_fonttools_the_extra_is_named(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fontTools", None)
    ended = recipe("letters/draw_letters", "--output_dir", tmp_path / "letters")
    assert ended.code == 2
    assert "fonttools is not installed" in ended.err
    assert "hint: pip install 'hf-transfer-learning[letters]'" in ended.err
    assert list(tmp_path.iterdir()) == []
