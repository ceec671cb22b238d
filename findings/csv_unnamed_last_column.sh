#!/usr/bin/env bash
# A CSV file with one unnamed last column: datasets' csv loader shifts every name by one.
#
# datasets 5.2.0 (pandas below it). The header names two columns, the rows have three cells: text,
# label, and the annotator. The annotator becomes the label, the label becomes the text, and the text
# goes into a column __index_level_0__. No warning. Expected: an error, as pyarrow's own CSV reader
# gives, or the names of the header over the first two columns.
#
# Output seen: {'text': ['a', 'b'], 'label': ['ann', 'ann'], '__index_level_0__': ['good', 'bad']}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
from pathlib import Path

import pyarrow.csv
from datasets import load_dataset

Path("rows.csv").write_text("text,label\ngood,a,ann\nbad,b,ann\n")
rows = load_dataset("csv", data_files="rows.csv", split="train")[:]
print(rows)
assert rows == {
    "text": ["a", "b"],
    "label": ["ann", "ann"],
    "__index_level_0__": ["good", "bad"],
}, "changed"
try:
    pyarrow.csv.read_csv("rows.csv")
    raise AssertionError("changed: pyarrow reads it, too")
except pyarrow.ArrowInvalid as error:
    print("pyarrow:", error)
EOF
