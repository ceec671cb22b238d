"""Peak memory of whole runs in processes of their own: `make bench`."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from hf_transfer.record import read_record
from tests.conftest import ROOT, WORDS

pytestmark = pytest.mark.slow

ROWS, TOKENS, WIDTH = (400, 4000), 60, 256


@pytest.fixture
def wide_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """A BERT of four layers whose activations are 61 kB a row of 60 words."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_max_length=64)
    tokenizer.save_pretrained(tmp_path / "bert")
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": WIDTH,
    }
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(
        tmp_path / "bert"
    )
    return tmp_path / "bert"


def _texts(path: Path, rows: int) -> Path:
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["text", "label"])
        for number in range(rows + 200):
            lines.writerow([" ".join(rng.choice(WORDS, TOKENS)), "ab"[number % 2]])
    return path


@pytest.mark.parametrize("strategy", ["head", "top_layers"])
def test_peak_memory_does_not_grow_with_the_rows(
    strategy: str, wide_bert: Path, tmp_path: Path
) -> None:
    peaks, stored = [], []
    for rows in ROWS:
        folder = tmp_path / str(rows)
        recipe = [
            sys.executable,
            str(ROOT / "recipes" / "text_classification.py"),
            "--use_cpu",
            "--disable_tqdm",
            "true",
        ]
        given = [
            "--model_name_or_path",
            str(wide_bert),
            "--dataset_name",
            str(_texts(tmp_path / f"{rows}.csv", rows)),
        ]
        short = ["--num_train_epochs", "1", "--eval_strategy", "no", "--strategy", strategy]
        subprocess.run(
            [*recipe, *given, *short, "--output_dir", str(folder)], check=True, capture_output=True
        )
        record = read_record(folder / "record.json")
        peaks.append(record.peak_memory_bytes)
        stored.append(record.phases[0].cached_bytes)
    print(f"\n{strategy}, {ROWS[0]} and {ROWS[1]} rows of {TOKENS} words, a BERT {WIDTH} wide")
    print(f"  stored        {stored[0] / 1e6:7.0f} MB  {stored[1] / 1e6:7.0f} MB")
    print(
        f"  peak memory   {peaks[0] / 1e6:7.0f} MB  {peaks[1] / 1e6:7.0f} MB   {peaks[1] / peaks[0]:.2f} x"
    )
    assert stored[1] > 5 * stored[0]
    assert peaks[1] < 1.2 * peaks[0]
