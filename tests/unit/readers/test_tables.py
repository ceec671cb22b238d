import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hf_transfer.errors import UserError
from hf_transfer.readers.tables import is_table, read_table


def _written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


CSV: dict[str, tuple[str | bytes, list[list[Any]]]] = {
    "words that stand for nothing elsewhere": (
        "text,label\nNA,NA\nNone,None\nN/A,null\nnan,NaN\n",
        [["NA", "None", "N/A", "nan"], ["NA", "None", "null", "NaN"]],
    ),
    "an empty cell": ("text,label\na,\n,b\n", [["a", None], [None, "b"]]),
    "codes with leading zeros": ("text,label\na,007\nb,08\n", [["a", "b"], ["007", "08"]]),
    "codes longer than numbers are": (
        "text,label\na,12345678901234567890\nb,1\n",
        [["a", "b"], ["12345678901234567890", "1"]],
    ),
    "whole numbers": ("text,label\na,1\nb,-2\n", [["a", "b"], [1, -2]]),
    "whole numbers and an empty cell": ("text,label\na,1\nb,\n", [["a", "b"], [1, None]]),
    "real numbers": ("text,label\na,1.5\nb,2\n", [["a", "b"], [1.5, 2.0]]),
    "numbers with a unit": ("text,label\na,1 kg\nb,2\n", [["a", "b"], ["1 kg", "2"]]),
    "true and false": ("text,label\na,true\nb,False\n", [["a", "b"], ["true", "False"]]),
    "a version number": ("text,label\na,1.0.1\nb,1.0\n", [["a", "b"], ["1.0.1", "1.0"]]),
    "empty cells after the last column": ("text,label\na,x,\nb,y,,\n", [["a", "b"], ["x", "y"]]),
    "fewer cells than columns": ("text,label\na\nb,y\n", [["a", "b"], [None, "y"]]),
    "blank lines": ("text,label\n\na,x\n  \nb,y\n\n", [["a", "b"], ["x", "y"]]),
    "a quoted line break": ('text,label\n"a\nb",x\n', [["a\nb"], ["x"]]),
    "a quoted comma": ('text,label\n"a, b",x\n', [["a, b"], ["x"]]),
    "a quote within a cell": ('text,label\n5" pipe,x\n', [['5" pipe'], ["x"]]),
    "two stray quotes": (
        'text,label\n"a,x\nb,y\n"c,x\n"d",y\n',
        [['"a', "b", '"c', "d"], ["x", "y", "x", "y"]],
    ),
    "one stray quote": ('text,label\na,x\n"b,y\nc,x\n', [["a", '"b', "c"], ["x", "y", "x"]]),
    "carriage returns": ("text,label\r\na,x\r\nb,y\r\n", [["a", "b"], ["x", "y"]]),
    "a line separator within a text": ("text,label\na\u2028b,x\n", [["a\u2028b"], ["x"]]),
    "semicolons": ("text;label\na, b;x\n", [["a, b"], ["x"]]),
    "tabs": ("text\tlabel\na, b\tx\n", [["a, b"], ["x"]]),
    "bars": ("text|label\na|x\n", [["a"], ["x"]]),
    "a byte order mark": (b"\xef\xbb\xbftext,label\na,x\n", [["a"], ["x"]]),
    "UTF-16": ("text,label\n\u00e9,x\n".encode("utf-16"), [["\u00e9"], ["x"]]),
    "a text longer than the csv module reads": (
        f"text,label\n{'a' * 200000},x\n",
        [["a" * 200000], ["x"]],
    ),
}


@pytest.mark.parametrize("case", CSV)
def test_cells_keep_what_the_file_says(case: str, tmp_path: Path) -> None:
    content, columns = CSV[case]
    rows = read_table(_written(tmp_path, "rows.csv", content))
    assert rows.column_names == ["text", "label"]
    assert [rows["text"][:], rows["label"][:]] == columns


@pytest.mark.parametrize("name", ["rows.CSV", "rows.TSV", "rows.JSONL", "rows.Json", "rows.NDJSON"])
def test_a_suffix_may_be_in_upper_case(name: str, tmp_path: Path) -> None:
    content = "text,label\na,x\n" if "SV" in name else '{"text": "a", "label": "x"}\n'
    path = _written(tmp_path, name, content)
    assert is_table(path)
    assert read_table(path)[0] == {"text": "a", "label": "x"}


JSON: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "lines": ('{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
    "a list": ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
    "an object with a list of rows": ('{"version": 2, "data": [{"a": 1}]}', [{"a": 1}]),
    "an object with a list of rows and an empty one": (
        '{"errors": [], "data": [{"a": 1}]}',
        [{"a": 1}],
    ),
    "one row with an empty list": ('{"a": "x", "b": []}', [{"a": "x", "b": []}]),
    "an object of columns": (
        '{"a": [1, 2], "b": ["x", "y"]}',
        [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
    ),
    "keys that some rows lack": (
        '[{"a": 1}, {"b": 2}]',
        [{"a": 1, "b": None}, {"a": None, "b": 2}],
    ),
    "dates, which are texts": ('[{"a": "2020-01-01"}]', [{"a": "2020-01-01"}]),
    "words for nothing, which are texts": (
        '[{"a": "null"}, {"a": null}]',
        [{"a": "null"}, {"a": None}],
    ),
    "a line separator within a text": ('{"a": "b\u2028c"}\n', [{"a": "b\u2028c"}]),
}


@pytest.mark.parametrize("case", JSON)
def test_json_has_the_rows_that_it_lists(case: str, tmp_path: Path) -> None:
    content, rows = JSON[case]
    assert list(read_table(_written(tmp_path, "rows.json", content))) == rows


REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "more cells than columns": ("a.csv", "text,label\na,x,ann\n", "line 2 of 'a.csv' has 3 cells"),
    "Latin-1": ("a.csv", "text,label\na,x\n\u00e9,y\n".encode("latin-1"), "byte 0xe9 in line 3"),
    "UTF-16 without a mark": ("a.csv", "text,label\na,x\n".encode("utf-16-le"), "zero bytes"),
    "an empty file": ("a.csv", "", "'a.csv' is empty"),
    "an empty JSON file": ("a.json", " \n", "'a.json' is empty"),
    "a header alone": ("a.csv", "text,label\n", "'a.csv' holds no rows"),
    "an empty list": ("a.json", "[]", "'a.json' holds no rows"),
    "a column twice": ("a.csv", "text,text\na,b\n", "names 'text' twice"),
    "a damaged line": ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2 of 'a.jsonl' is no JSON"),
    "no objects": ("a.json", "[1, 2]", "'a.json' holds no rows"),
    "several lists of rows": (
        "a.json",
        '{"train": [{"a": 1}], "test": [{"a": 2}]}',
        "several lists of rows: train, test",
    ),
    "values of two kinds": ("a.json", '[{"a": 1}, {"a": "b"}]', "several kinds: int, str"),
    "no Parquet": ("a.parquet", "text,label", "'a.parquet' is no Parquet file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_read_is_refused_by_what_is_wrong(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    with pytest.raises(UserError) as refusal:
        read_table(_written(tmp_path, name, content))
    assert message in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_brackets_in_a_path_stand_for_themselves(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "[a-c]*"
    folder.mkdir()
    path = folder / f"rows[1].{suffix}"
    frame = pd.DataFrame({"text": ["a"], "label": ["x"]})
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text(
            "text,label\na,x\n" if suffix == "csv" else json.dumps(frame.to_dict("records"))
        )
    assert read_table(path)[0] == {"text": "a", "label": "x"}
