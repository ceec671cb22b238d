"""Peak memory of whole runs in processes of their own: `make bench`."""

import csv
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_transfer.record import read_record
from tests.conftest import ROOT, WORDS

pytestmark = pytest.mark.slow

ROWS, TOKENS, WIDTH = (400, 4000), 60, 256
IMAGES = (2000, 20_000)


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


def _peak_private_bytes(command: list[str]) -> int:
    """Largest RssAnon of a process: its memory without mapped files, such as those of the store."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with suppress(OSError, StopIteration):
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            line = next(line for line in status if line.startswith("RssAnon"))
            peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


def test_private_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    vit = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=96,
        patch_size=32,
    )
    ViTForImageClassification(vit).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 96, "width": 96}).save_pretrained(tmp_path / "vit")
    peaks = []
    for count in IMAGES:
        folder = tmp_path / f"images-{count}"
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            path = folder / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((160, 120)).save(path)
        flags = {
            "model_name_or_path": tmp_path / "vit",
            "dataset_name": folder,
            "strategy": "full",
            "num_train_epochs": 1,
            "output_dir": tmp_path / f"out-{count}",
            "cache_dir": tmp_path / f"cache-{count}",
            "baselines": "majority",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        recipe = str(ROOT / "recipes" / "image_classification.py")
        given = [f"--{name}={value}" for name, value in flags.items()]
        peaks.append(_peak_private_bytes([sys.executable, recipe, *given]))
    print(f"\nfull, {IMAGES[0]} and {IMAGES[1]} images of 96 pixels, prepared once")
    print(
        f"  private memory   {peaks[0] / 1e6:7.0f} MB  {peaks[1] / 1e6:7.0f} MB   "
        f"{peaks[1] / peaks[0]:.2f} x"
    )
    assert peaks[1] < 1.2 * peaks[0]
