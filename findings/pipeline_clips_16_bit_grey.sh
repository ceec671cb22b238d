#!/usr/bin/env bash
# transformers' image-classification pipeline sees a 16-bit grey PNG as plain white.
#
# transformers 5.23.0, pillow 13.0.0. An image is opened and converted to RGB by Pillow, which clips
# 16-bit levels at 255 and does not scale them. A gradient saved in 16 bits (each 8-bit level times
# 257) gets the scores of a white image, not those of the same gradient in 8 bits. No warning: X-rays
# and microscope images come in this format.
#
# Output seen: 16 bits as 8 bits: False, as white: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 pillow==13.0.0
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import numpy as np
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, pipeline, set_seed
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

set_seed(0)
sizes = dict(image_size=32, patch_size=8, hidden_size=32, intermediate_size=64)
layers = dict(num_hidden_layers=2, num_attention_heads=4, num_labels=3, initializer_range=0.5)
classify = pipeline(
    "image-classification",
    model=ViTForImageClassification(ViTConfig(**sizes, **layers)),
    image_processor=ViTImageProcessorPil(size={"height": 32, "width": 32}),
)
levels = np.tile(np.linspace(60, 255, 32).astype(np.uint8), (32, 1))
Image.fromarray(levels).save("8.png")
Image.fromarray(levels.astype(np.uint16) * 257).save("16.png")
Image.fromarray(np.full((32, 32), 255, np.uint8)).save("white.png")
scores = {name: classify(f"{name}.png") for name in ("8", "16", "white")}
seen = scores["16"] == scores["8"], scores["16"] == scores["white"]
print("16 bits as 8 bits: %s, as white: %s" % seen)
assert seen == (False, True), "changed"
EOF
