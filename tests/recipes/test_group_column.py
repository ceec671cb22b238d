"""--group_column through the recipes: images, texts and words, solved and in steps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from hf_transfer.record import RunRecord, read_record
from tests.conftest import WORDS, Outcome

Recipe = Callable[..., Outcome]


def _run(recipe: Recipe, name: str, folder: Path, *flags: object) -> RunRecord:
    ended = recipe(name, "--output_dir", folder, "--disable_tqdm", "true", "--use_cpu", *flags)
    assert ended.code == 0, ended.err
    return read_record(folder / "record.json")


def test_a_head_is_solved_with_folds_of_groups(
    recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    rows = []
    for author in range(30):
        text = " ".join(draw.choice(WORDS, 5))
        rows += [{"text": text, "label": "xy"[draw.integers(2)], "author": author}] * 6
    pd.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    flags = ("--model_name_or_path", tiny_bert, "--dataset_name", tmp_path / "train.csv")
    flags += ("--strategy", "head", "--pooling", "own")
    without = _run(recipe, "text_classification", tmp_path / "rows", *flags)
    groups = (*flags, "--group_column", "author")
    record = _run(recipe, "text_classification", tmp_path / "groups", *groups)
    assert record.dataset.columns == {"text": "text", "label": "label", "group": "author"}
    assert record.dataset.splits.test == 36
    # The author's text tells the label, which is drawn: no other author's text does.
    assert record.phases[0].solved.strength > 10 * without.phases[0].solved.strength


def test_images_of_groups_are_learned_in_steps(
    recipe: Recipe, tiny_resnet: Path, picture_folder: Path, tmp_path: Path
) -> None:
    files = sorted(picture_folder.rglob("*.png"))
    table = pd.DataFrame(
        {
            "image": list(map(str, files)),
            "label": [file.parent.name for file in files],
            "patient": [int(file.stem) // 4 for file in files],
        }
    )
    table.to_csv(tmp_path / "scans.csv", index=False)
    record = _run(
        *(recipe, "image_classification", tmp_path / "run"),
        *("--model_name_or_path", tiny_resnet, "--dataset_name", tmp_path / "scans.csv"),
        *("--group_column", "patient", "--strategy", "head_then_full", "--max_steps", "2"),
    )
    assert record.dataset.columns["group"] == "patient"
    assert [phase.steps for phase in record.phases] == [0, 2]


def test_words_of_a_document_are_in_one_fold(
    recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    # Each document has one word: its tag says nothing of the other words.
    tags = np.random.default_rng(0).permutation(["O", "X"] * 6)
    lines = []
    for document, (word, tag) in enumerate(zip(WORDS, tags, strict=True)):
        row = {"tokens": [word], "tags": [str(tag)], "document": f"d{document}"}
        lines += [json.dumps(row)] * 10
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    flags = ("--model_name_or_path", tiny_bert, "--dataset_name", tmp_path / "rows.jsonl")
    flags += ("--strategy", "head")
    without = _run(recipe, "token_classification", tmp_path / "rows", *flags)
    groups = (*flags, "--group_column", "document")
    record = _run(recipe, "token_classification", tmp_path / "groups", *groups)
    assert record.dataset.columns["group"] == "document"
    assert record.phases[0].solved.strength > without.phases[0].solved.strength


def test_one_speaker_only_is_one_error_and_a_hint(
    recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = {
        "text": [f"text {n}" for n in range(20)],
        "label": ["x", "y"] * 10,
        "speaker": ["Anna"] * 20,
    }
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    ended = recipe(
        *("text_classification", "--model_name_or_path", tiny_bert, "--dataset_name"),
        *(tmp_path / "rows.csv", "--group_column", "speaker", "--output_dir", tmp_path / "run"),
    )
    assert ended.code == 2
    assert "error: all 20 training rows are of one group: speaker 'Anna'" in ended.err
    assert "hint: give rows of two groups or more" in ended.err
