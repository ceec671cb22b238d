"""Whole runs on images beside the script that people write today, interleaved: `make bench-images`.

Each contender is a process of its own: imports, loading, training, evaluation and saving count.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

from hf_transfer.package_files import package_folder

BARE = Path(__file__).with_name("bare_images.py")
CLASSES = 4


@dataclass(frozen=True)
class Case:
    """Images of a size, a network, and how long it is trained; the median of some rounds."""

    images: str
    network: str
    epochs: int
    rounds: int = 3


SIZES = {"images": (2000, 640, 480), "photos": (500, 4000, 3000)}
CASES = (
    Case("images", "vit", 1),
    Case("images", "vit", 5),
    Case("images", "vit", 20, 1),
    Case("images", "resnet", 1, 1),
    Case("photos", "vit", 1, 1),
    Case("photos", "vit", 5, 1),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two checkpoints, "vit" and "resnet"."""
    folder = tmp_path_factory.mktemp("images")
    set_seed(0)
    vit = ViTConfig(
        image_size=224,
        patch_size=32,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    resnet = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
    )
    ViTForImageClassification(vit).save_pretrained(folder / "vit")
    ResNetForImageClassification(resnet).save_pretrained(folder / "resnet")
    for network in ("vit", "resnet"):
        ViTImageProcessorPil().save_pretrained(folder / network)
    return folder


def _images(home: Path, name: str) -> Path:
    """A folder of JPEGs of four classes, that differ in their colours."""
    number, width, height = SIZES[name]
    folder = home / name
    for row in range(0 if folder.exists() else number):
        kind = row % CLASSES
        rng = np.random.default_rng(row)
        coarse = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        coarse[..., kind % 3] //= 2 + (kind == 3)
        path = folder / f"c{kind}" / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((width, height)).save(path, quality=90)
    return folder


def _bare(home: Path, case: Case, workers: int) -> list[str]:
    images = _images(home, case.images)
    given = (images, home / case.network, home / "bare", case.epochs, workers)
    return [str(BARE), *map(str, given)]


def _ours(home: Path, case: Case, cache: str, strategy: str = "full") -> list[str]:
    flags = {
        "model_name_or_path": home / case.network,
        "dataset_name": _images(home, case.images),
        "strategy": strategy,
        "num_train_epochs": case.epochs,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "output_dir": home / "ours",
        "overwrite_output_dir": True,
        "cache_dir": home / cache,
        "disable_tqdm": True,
    }
    recipe = package_folder("recipes") / "image_classification.py"
    return [str(recipe), *(f"--{name}={value}" for name, value in flags.items())]


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.images}-{case.network}-{case.epochs}"
)
def test_whole_runs_against_a_bare_trainer(case: Case, home: Path) -> None:
    _images(home, case.images)
    times: dict[str, list[float]] = {}
    for turn in range(case.rounds):
        contenders = {
            "bare Trainer, 2 workers": _bare(home, case, 2),
            "ours": _ours(home, case, f"cache-{case.network}-{case.epochs}-{turn}"),
            "ours, a second run": _ours(home, case, f"cache-{case.network}-{case.epochs}-{turn}"),
        }
        if case.rounds > 1:  # always the slower one where a run takes minutes
            contenders["bare Trainer, no worker"] = _bare(home, case, 0)
        for name, command in contenders.items():
            times.setdefault(name, []).append(_seconds(command))
    bare = min(median(seconds) for name, seconds in times.items() if name.startswith("bare"))
    print(f"\n{case}")
    for name, seconds in times.items():
        print(f"  {name:<26}{median(seconds):7.1f} s   {bare / median(seconds):5.2f}")
    timings = json.loads((home / "ours" / "record.json").read_text())["timings"]
    print("  second run:", {name: round(value, 2) for name, value in timings.items()})
    assert set(map(len, times.values())) == {case.rounds}
