#!/usr/bin/env bash
# Trainer.predict returns no labels for Qwen3_5ForSequenceClassification, though each row has one.
#
# transformers 5.23.0. Trainer finds the names of labels (find_labels) in the signature of forward.
# This class, the only one of the 127 with a text classification head, takes them in **kwargs: without
# label_names=["labels"] in TrainingArguments, label_ids of Trainer.predict is None.
#
# Output seen: ['Qwen3_5ForSequenceClassification'] of 127
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 accelerate==1.15.0
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.utils import find_labels

classes = []
for config in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config]
    classes.append(kind[0] if isinstance(kind, tuple) else kind)
without = [kind.__name__ for kind in classes if not find_labels(kind)]
print(without, "of", len(classes))
assert without == ["Qwen3_5ForSequenceClassification"], "changed"
EOF
