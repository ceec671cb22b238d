#!/usr/bin/env bash
# A class folder called `train` makes datasets' imagefolder lose all other classes, and the labels.
#
# datasets 5.2.0. Folders bus/, car/ and train/ hold five images each, a folder per class. The name
# `train` is taken for a split: of 15 images 5 are loaded, in one split, and there is no column of
# labels, since one label is left. No warning. Expected: three classes of five images.
#
# Output seen: {'train': 5} ['image']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
from pathlib import Path

from datasets import load_dataset
from PIL import Image

for name, level in (("bus", 10), ("car", 120), ("train", 240)):
    Path("vehicles", name).mkdir(parents=True)
    for number in range(5):
        Image.new("L", (8, 8), level).save(f"vehicles/{name}/{number}.png")
loaded = load_dataset("imagefolder", data_dir="vehicles")
seen = {split: len(rows) for split, rows in loaded.items()}, loaded["train"].column_names
print(*seen)
assert seen == ({"train": 5}, ["image"]), "changed"
EOF
