#!/usr/bin/env bash
# model.load_adapter leaves the head as it was drawn, where PeftModel.from_pretrained loads it.
#
# transformers 5.17.0 with peft 0.21.2 (transformers 5.23.0 loads it). A LoRA adapter of BERT with
# modules_to_save=["classifier"] is saved by PEFT. PeftModel.from_pretrained gives the logits of the
# trained model; the model's own load_adapter, on the same base and folder, raises nothing and gives
# those of a random head: accuracy at chance after a training that went well.
#
# Output seen: PeftModel True, load_adapter False (logits equal to those of the trained model)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.17.0 'huggingface_hub<2' torch==2.13.0 peft==0.21.2
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, set_seed

set_seed(0)
sizes = dict(vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
BertModel(BertConfig(**sizes, num_attention_heads=2)).save_pretrained("base")


def base():
    set_seed(1)
    return AutoModelForSequenceClassification.from_pretrained("base", num_labels=3)


trained = get_peft_model(
    base(), LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
).eval()
with torch.no_grad():
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter))
trained.save_pretrained("adapter")
ids = torch.randint(5, 30, (2, 6))
other = base()
other.load_adapter("adapter")
loaded = {"PeftModel": PeftModel.from_pretrained(base(), "adapter"), "load_adapter": other}
with torch.no_grad():
    right = trained(input_ids=ids).logits
    equal = {
        name: torch.allclose(model.eval()(input_ids=ids).logits, right, atol=1e-5)
        for name, model in loaded.items()
    }
print(equal)
assert equal == {"PeftModel": True, "load_adapter": False}, "changed"
EOF
