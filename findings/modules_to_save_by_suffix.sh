#!/usr/bin/env bash
# PEFT's modules_to_save=["classifier"] trains DistilBERT's pre_classifier, too.
#
# peft 0.21.2 with transformers 5.23.0. The names are compared by how a module's path ends, without a
# dot before them: `pre_classifier` ends with `classifier`. So a layer that was to stay frozen is
# trained and saved in full, and an adapter file without it cannot be loaded. Expected: the module
# called classifier alone.
#
# Output seen: ['classifier', 'pre_classifier']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 peft==0.21.2
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
from peft import LoraConfig, get_peft_model
from transformers import DistilBertConfig, DistilBertForSequenceClassification

sizes = dict(vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
model = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
adapted = get_peft_model(
    model, LoraConfig(target_modules=["q_lin"], modules_to_save=["classifier"])
)
paths = (name for name, _ in adapted.named_parameters() if ".modules_to_save." in name)
saved = sorted({path.split(".modules_to_save.")[0].split("model.")[-1] for path in paths})
print(saved)
assert saved == ["classifier", "pre_classifier"], "changed"
EOF
