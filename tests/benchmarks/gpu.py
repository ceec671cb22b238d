"""`full` of a ViT-B/16 in bf16 from JPEGs, beside the script that people write today: on a GPU.

    python tests/benchmarks/gpu.py                 # 5,000 images of 640 x 480, under 8 minutes
    python tests/benchmarks/gpu.py --rows 64 --layers 1 --width 96    # a try on a CPU

Prints images a second of a whole epoch, the seconds of a step that are not the network's, and the
share of the device's peak. Each contender is a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, set_seed

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "recipes" / "image_classification.py"
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}  # bf16, without sparsity
BATCH = 64
STEPS = 20


def draw(folder: Path, row: int) -> None:
    rng = np.random.default_rng(row)
    coarse = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    coarse[..., row % 3] //= 2 + (row % 4 == 3)
    path = folder / f"c{row % 4}" / f"{row}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((640, 480)).save(path, quality=90)


def network_seconds(checkpoint: Path, device: torch.device) -> float:
    """Seconds of a training step on a batch that lies in the device's memory."""
    model = ViTForImageClassification.from_pretrained(checkpoint).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    pixels = torch.randn(BATCH, 3, 224, 224, device=device)
    labels = torch.zeros(BATCH, dtype=torch.long, device=device)
    began = 0.0
    for step in range(STEPS + 5):
        if step == 5:
            _wait(device)
            began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    _wait(device)
    return (time.perf_counter() - began) / STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def operations(checkpoint: Path) -> float:
    """Floating-point operations of a training step: forward, and backward at twice the cost."""
    from torch.utils.flop_counter import FlopCounterMode

    model = ViTForImageClassification.from_pretrained(checkpoint)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(pixel_values=torch.zeros(1, 3, 224, 224))
    return 3.0 * BATCH * counter.get_total_flops()


def run(command: list[str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return time.perf_counter() - began, done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(draw, home / "images"), range(given.rows), chunksize=50))
        set_seed(0)
        config = ViTConfig(
            num_hidden_layers=given.layers,
            hidden_size=given.width,
            intermediate_size=4 * given.width,
        )
        ViTForImageClassification(config).save_pretrained(home / "vit")
        ViTImageProcessorPil().save_pretrained(home / "vit")
        step = network_seconds(home / "vit", device)
        peak = next((each for key, each in PEAK.items() if key in name), None)
        print(
            f"{name}: {given.rows} JPEGs, a step of {BATCH} on data in memory {step * 1e3:.1f} ms"
        )
        for contender, rows, seconds, whole in contenders(home, given.rows):
            data = seconds / (rows / BATCH) - step
            share = operations(home / "vit") / BATCH * rows / seconds / peak if peak else None
            print(
                f"  {contender:<28}{rows / seconds:8.0f} images/s   beside the network "
                f"{data * 1e3:7.1f} ms a step   whole run {whole:6.1f} s"
                + (f"   {share:.1%} of peak" if share else "")
            )


def contenders(home: Path, rows: int) -> "list[tuple[str, int, float, float]]":
    """Name, images that were trained on, seconds of the training loop, of the whole process."""
    measured = []
    epochs = 2
    for workers in (0, 8):
        bare = [str(HERE / "bare_images.py"), str(home / "images"), str(home / "vit")]
        whole, text = run([*bare, str(home / "bare"), str(epochs), str(workers), str(BATCH)])
        seconds = next(
            float(str(json.loads(line)["train_runtime"]))
            for line in text.splitlines()
            if line.startswith('{"train_runtime"')
        )
        trained = epochs * round(0.8 * 0.85 * rows)
        measured.append((f"bare Trainer, {workers} workers", trained, seconds, whole))
    flags = {
        "model_name_or_path": home / "vit",
        "dataset_name": home / "images",
        "strategy": "full",
        "num_train_epochs": epochs,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-5,
        "output_dir": home / "ours",
        "overwrite_output_dir": True,
        "cache_dir": home / "cache",
        "disable_tqdm": True,
        "bf16": torch.cuda.is_available(),
    }
    for contender in ("ours", "ours, a second run"):
        whole, _ = run([str(RECIPE), *(f"--{name}={value}" for name, value in flags.items())])
        record = json.loads((home / "ours" / "record.json").read_text())
        trained = epochs * record["dataset"]["splits"]["train"]
        measured.append((contender, trained, record["timings"]["train_s"], whole))
    return measured


if __name__ == "__main__":
    main()
