#!/usr/bin/env bash
# tokenizer.split_special_tokens = True works, and is gone after save_pretrained.
#
# transformers 5.23.0. With the attribute set, "</s>" within a text is taken apart like any word; in
# the saved tokenizer_config.json it does not appear, and the loaded tokenizer gives the end token
# again. Put into init_kwargs, the same setting is saved and loaded. Classifiers of encoder-decoders
# (BART, T5) refuse a batch whose rows hold different numbers of end tokens, so the setting decides
# whether a saved classifier can be used on such texts.
#
# Output seen: here False, loaded True, through init_kwargs False ("</s>" gave the end token)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
core = Tokenizer(models.BPE())
core.pre_tokenizer = bytes_
core.train_from_iterator(
    ["the cat sat"] * 10,
    trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=bytes_.alphabet()),
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def gives_end(each):
    return each.eos_token_id in each("the </s> cat")["input_ids"]


tokenizer.split_special_tokens = True
tokenizer.save_pretrained("attribute")
tokenizer.init_kwargs["split_special_tokens"] = True
tokenizer.save_pretrained("init_kwargs")
loaded = [AutoTokenizer.from_pretrained(name) for name in ("attribute", "init_kwargs")]
seen = [gives_end(each) for each in (tokenizer, *loaded)]
print("here %s, loaded %s, through init_kwargs %s" % tuple(seen))
assert seen == [False, True, False], "changed"
EOF
