"""`hf-transfer predict`: what it reads, and what it refuses."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hf_transfer.cli import main as cli
from tests.unit.sharing.example import example_record

Ask = Callable[..., tuple[int, list[list[str]], str]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """A function that runs `predict`: its exit code, its lines as cells, and the error stream."""

    def run(*words: object) -> tuple[int, list[list[str]], str]:
        monkeypatch.setattr(sys, "argv", ["hf-transfer", "predict", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, [line.split("\t") for line in captured.out.splitlines()], captured.err

    return run


def _trained_on(model: Path, folder: Path, **columns: str) -> Path:
    """A copy of a model with the record of a run that read these columns."""
    copy = Path(shutil.copytree(model, folder))
    record = example_record()
    dataset = replace(record.dataset, columns={"label": "label", **columns})
    (copy / "record.json").write_text(replace(record, dataset=dataset).to_json_string())
    return copy


TABLES: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "rows.csv": lambda frame, path: frame.to_csv(path, index=False),
    "rows.TSV": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "rows.jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "rows.parquet": lambda frame, path: frame.to_parquet(path),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_answered_row_by_row(
    name: str, ask: Ask, tiny_bert: Path, tmp_path: Path
) -> None:
    frame = pd.DataFrame({"id": [1, 2], "text": ["the cat sleeps", "red"]})
    TABLES[name](frame, tmp_path / name)
    code, lines, _ = ask(tiny_bert, tmp_path / name)
    assert code == 0
    assert [line[0] for line in lines] == ["the cat sleeps", "red"]
    (_, alone, _) = ask(tiny_bert, "red")
    assert lines[1] == alone[0]


@pytest.mark.parametrize(
    ("columns", "words", "first"),
    [
        ({"text": "body"}, (), "b"),  # of the training data
        ({}, (), "t"),  # of a usual name
        ({"text": "body"}, ("--column", "title"), "i"),  # as given
        ({"text": "gone"}, (), "t"),
    ],
)
def test_the_column_of_a_table_is_found(
    columns: dict[str, str],
    words: tuple[str, ...],
    first: str,
    ask: Ask,
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    model = _trained_on(tiny_bert, tmp_path / "run", **columns)
    (tmp_path / "rows.csv").write_text("title,body,text\ni,b,t\n")
    code, lines, _ = ask(model, tmp_path / "rows.csv", *words)
    assert (code, lines[0][0]) == (0, first)


def test_text_files_and_folders_of_them_are_texts(
    ask: Ask, tiny_bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("1.txt", "2.txt", ".hidden.txt", "3.md"):
        (tmp_path / "in" / name).write_text("the cat sleeps")
    _, (text,), _ = ask(tiny_bert, "the cat sleeps")
    _, lines, _ = ask(tiny_bert, tmp_path / "in", tmp_path / "in" / "1.txt")
    assert [Path(line[0]).name for line in lines] == ["1.txt", "2.txt", "1.txt"]
    assert all(line[1:] == text[1:] for line in lines)


def test_a_pair_is_read_from_both_columns_of_a_table(
    ask: Ask, tiny_bert: Path, tmp_path: Path
) -> None:
    model = _trained_on(tiny_bert, tmp_path / "run", text="a", text_pair="b")
    (tmp_path / "rows.csv").write_text("a,b\nred,the cat\nred,the dog\n")
    code, lines, _ = ask(model, tmp_path / "rows.csv")
    assert code == 0
    assert [line[0] for line in lines] == ["red | the cat", "red | the dog"]


def test_a_text_longer_than_the_model_takes_is_truncated(ask: Ask, tiny_bert: Path) -> None:
    code, lines, _ = ask(tiny_bert, "the cat sleeps " * 400)
    assert (code, len(lines)) == (0, 1)


def test_answers_do_not_depend_on_the_inputs_beside_them(ask: Ask, tiny_bert: Path) -> None:
    texts = ["the cat sleeps", "red", "a dog and a bird and a cat and a dog", "blue"]
    _, together, _ = ask(tiny_bert, *texts)
    assert together == [ask(tiny_bert, text)[1][0] for text in texts]


def test_of_a_folder_images_alone_are_read_and_the_rest_is_counted(
    ask: Ask, tiny_vit: Path, picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(picture_folder / "dark" / "1.png", tmp_path / "1.PNG")
    for name in ("1.json", ".2.png", "notes.txt"):
        (tmp_path / name).write_text("{}")
    with caplog.at_level("INFO"):
        code, lines, _ = ask(tiny_vit, tmp_path)
    assert (code, len(lines)) == (0, 1)
    assert "2 files are no images, 1 are hidden" in caplog.text


def test_an_image_is_read_as_in_training(ask: Ask, tiny_vit: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    tags = Image.Exif()
    tags[0x0112] = 3
    Image.fromarray(np.rot90(grey, 2)).save(tmp_path / "turned.png", exif=tags)
    _, lines, _ = ask(tiny_vit, *(tmp_path / name for name in ("8.png", "16.png", "turned.png")))
    assert len({tuple(line[1:]) for line in lines}) == 1


def test_the_embedded_checkpoint_can_be_asked(ask: Ask, picture_folder: Path) -> None:
    code, lines, _ = ask("builtin:letters-resnet", picture_folder / "dark" / "1.png")
    assert (code, len(lines)) == (0, 1)


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a table that is not there": (("BERT", "tickets.csv"), "no file 'tickets.csv'"),
    "a file that is no table": (("BERT", "{}/notes.md"), "cannot read"),
    "a folder without texts": (("BERT", "{}/empty"), "holds no .txt files"),
    "a column that is not there": (("BERT", "{}/rows.csv", "--column", "x"), "unknown column 'x'"),
    "two columns of texts": (("BERT", "{}/rows.csv"), "which column of the table holds the texts"),
    "a row without a text": (("BERT", "{}/gap.csv"), "row 1 of the table has no text"),
    "one text for a model of pairs": (("PAIRS", "red"), "this model reads pairs of texts"),
    "a table for a model of images": (("VIT", "{}/rows.csv"), "is not an image"),
    "a column for a model of images": (("VIT", "x.png", "--column", "y"), "for tables of texts"),
    "a folder without images": (("VIT", "{}/empty"), "holds no images"),
    "a folder that is no model": (("{}/empty", "x"), "no model"),
    "a builtin checkpoint that is not there": (("builtin:x", "y"), "unknown builtin checkpoint"),
    "a model without weights": (("BROKEN", "x"), "no model"),
    "a model with damaged weights": (("DAMAGED", "x"), "no model"),
    "a model without a processor": (("BARE", "x.png"), "has no processor"),
    "a path without a model": (("./nowhere", "x"), "no model './nowhere'"),
}


@pytest.fixture
def places(tiny_bert: Path, tiny_vit: Path, tmp_path: Path) -> dict[str, Path]:
    """The models that REFUSED names, beside some files."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("notes")
    (tmp_path / "rows.csv").write_text("a,b\nx,y\n")
    (tmp_path / "gap.csv").write_text("text,b\nx,y\n,z\n")
    broken = Path(shutil.copytree(tiny_bert, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    damaged = Path(shutil.copytree(tiny_bert, tmp_path / "damaged"))
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[: len(content) // 2])
    bare = Path(shutil.copytree(tiny_vit, tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    pairs = _trained_on(tiny_bert, tmp_path / "pairs", text="a", text_pair="b")
    return {
        "BERT": tiny_bert,
        "VIT": tiny_vit,
        "BROKEN": broken,
        "DAMAGED": damaged,
        "BARE": bare,
        "PAIRS": pairs,
    }


@pytest.mark.parametrize("case", REFUSED)
def test_it_says_in_one_line_what_is_wrong(
    case: str, ask: Ask, places: dict[str, Path], tmp_path: Path
) -> None:
    words, message = REFUSED[case]
    given = [str(places.get(word, word.format(tmp_path))) for word in words]
    code, lines, err = ask(*given)
    assert (code, lines) == (2, [])
    assert message in err
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert sum(line.startswith("hint: ") for line in err.splitlines()) == 1


def test_a_model_that_is_not_there_is_refused_at_once_without_a_network(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.perf_counter()
    code, _, err = ask("nobody/nothing", "x")
    assert code == 2
    assert "error: " in err
    assert time.perf_counter() - began < 5


def test_a_reader_that_takes_a_few_lines_is_no_error(tiny_bert: Path) -> None:
    program = (
        "import sys; from hf_transfer.cli.main import main; "
        f"sys.argv = ['hf-transfer', 'predict', {str(tiny_bert)!r}, *['red'] * 40000]; main()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout
    assert run.stderr
    run.stdout.readline()
    run.stdout.close()
    err = run.stderr.read().decode()
    run.stderr.close()
    assert run.wait() == 0
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_an_empty_standard_input_has_no_answers(
    ask: Ask, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, count in (("", 0), ("red\nthe cat sleeps\n", 2)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code, lines, _ = ask(tiny_bert, "-")
        assert (code, len(lines)) == (0, count)


def test_a_record_of_another_version_is_passed_over(
    ask: Ask, tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = _trained_on(tiny_bert, tmp_path / "run")
    (model / "record.json").write_text(json.dumps({"schema": 0}))
    code, lines, _ = ask(model, "red")
    assert (code, len(lines)) == (0, 1)
    assert "is no record of this version" in caplog.text
