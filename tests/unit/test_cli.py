import sys

import pytest

from hf_transfer import cli
from tests.conftest import ROOT


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hf-transfer", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_every_recipe_is_offered() -> None:
    assert len(cli.recipe_names()) >= 5
    assert cli.recipe_names() == sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


def test_an_unknown_recipe_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "run", "image_clasification") == 2
    assert "did you mean 'image_classification'" in capsys.readouterr().err


def test_predict_answers_for_pictures_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_vit: object, picture_folder: object
) -> None:
    code = _run(monkeypatch, "predict", str(tiny_vit), f"{picture_folder}/dark/1.png", f"{picture_folder}/bright")
    lines = capsys.readouterr().out.strip().splitlines()
    assert code == 0
    assert len(lines) == 41
    name, label, probability = lines[0].split("\t")
    assert name.endswith("dark/1.png")
    assert label.startswith("LABEL_")
    assert 0 < float(probability) <= 1


def test_predict_answers_for_texts_with_the_best_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_bert: object
) -> None:
    assert _run(monkeypatch, "predict", str(tiny_bert), "the cat sleeps", "--top_k", "2") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["the cat sleeps"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", "./nowhere", "x"), "no model './nowhere'"),
        (("predict", "VIT", "nowhere.png"), "no file 'nowhere.png'"),
        (("predict", "VIT", "README.md"), "'README.md' is not a picture"),
        (("predict", "VIT", "x.png", "--top_k", "0"), "--top_k 0 is too small"),
    ],
)
def test_predict_says_in_one_line_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_vit: object,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(ROOT)
    assert _run(monkeypatch, *(str(tiny_vit) if word == "VIT" else word for word in words)) == 2
    assert f"error: {message}" in capsys.readouterr().err
