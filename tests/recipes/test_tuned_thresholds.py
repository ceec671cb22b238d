"""--thresholds tuned: chosen on held-out rows, kept, used by metrics, predict and the card's lines."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_transfer.inference import answers, load_finished
from hf_transfer.models.thresholds import read_thresholds
from hf_transfer.record import RunRecord, read_record
from tests.conftest import Outcome

Recipe = Callable[..., Outcome]
COLOURS, ANIMALS = ("red", "blue", "green"), ("cat", "dog", "bird")
TUNED = ("--thresholds", "tuned")


def _tagged(path: Path, rows: int, seed: int) -> None:
    """Texts with the animals that they name, and a rare label that their words only hint at."""
    draw = np.random.default_rng(seed)
    lines = []
    for number in range(rows):  # which is no word of the model: no two texts are the same
        words = [*draw.choice(COLOURS, 2), *draw.choice(ANIMALS, 1), f"{seed}-{number}"]
        labels = [str(words[2])]
        if words[0] == "red" and draw.random() < 0.4:
            labels.append("rare")
        lines.append(json.dumps({"text": " ".join(words), "labels": labels}))
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three splits."""
    folder = tmp_path_factory.mktemp("tagged")
    for seed, (name, rows) in enumerate({"train": 200, "validation": 100, "test": 200}.items()):
        _tagged(folder / f"{name}.jsonl", rows, seed)
    return folder


def _run(recipe: Recipe, model: Path, data: Path, folder: Path, *flags: str) -> RunRecord:
    ended = recipe(
        *("text_classification", "--model_name_or_path", model, "--dataset_name", data),
        *("--output_dir", folder, "--disable_tqdm", "true", "--use_cpu", *flags),
    )
    assert ended.code == 0, ended.err
    return read_record(folder / "record.json")


@pytest.mark.parametrize("strategy", ["head", "head_then_full"])
def test_thresholds_of_the_validation_split_find_a_rare_label(
    strategy: str, recipe: Recipe, tiny_bert: Path, tagged: Path, tmp_path: Path
) -> None:
    flags = ("--strategy", strategy, "--max_steps", "10", *TUNED)
    record = _run(recipe, tiny_bert, tagged, tmp_path / "run", *flags)
    thresholds = record.evaluation.thresholds
    assert thresholds.chosen_on == "validation"
    assert list(thresholds.values) == record.dataset.labels == ["bird", "cat", "dog", "rare"]
    assert thresholds.values["rare"] < 0.5
    assert list(thresholds.plain) == ["f1_micro", "f1_macro", "exact_match"]
    assert record.metrics["f1_macro"].value > thresholds.plain["f1_macro"].value
    assert record.evaluation.per_class[3].recall.value > 0.5
    # The mean of the F1 of each label is that of the metric.
    per_class = [row.f1.value for row in record.evaluation.per_class]
    assert np.mean(per_class) == pytest.approx(record.metrics["f1_macro"].value)


def test_what_is_kept_in_the_config_is_what_predict_and_the_lines_of_the_card_use(
    recipe: Recipe, tiny_bert: Path, tagged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    record = _run(recipe, tiny_bert, tagged, folder, "--strategy", "head", *TUNED)
    values = record.evaluation.thresholds.values
    assert json.loads((folder / "config.json").read_text())["label_thresholds"] == values
    finished = load_finished(str(folder))
    (every,) = answers(finished, [{"text": "red blue cat 9-9"}], top_k=4)
    (above,) = answers(finished, [{"text": "red blue cat 9-9"}])
    assert {"cat", "rare"} <= dict(above).keys() < set(values)
    assert float(dict(above)["rare"]) < 0.5
    assert above == [found for found in every if float(found[1]) > values[found[0]]]
    card = (folder / "README.md").read_text()
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    lines = lines.replace("a text", "red blue cat 9-9").replace('"."', repr(str(folder)))
    names: dict[str, list[dict[str, object]]] = {}
    exec(lines, names)
    assert [found["label"] for found in names["found"]] == list(dict(above))
    assert "With 0.5 for all labels: F1 (micro) " in card
    assert "with 0.5 for all: F1 (micro) " in (folder / "report.html").read_text()


def test_a_head_that_is_solved_tunes_its_thresholds_out_of_fold(
    recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    _tagged(tmp_path / "rows.jsonl", 300, 0)
    flags = ("--strategy", "head", *TUNED)
    record = _run(recipe, tiny_bert, tmp_path / "rows.jsonl", tmp_path / "run", *flags)
    assert record.dataset.splits.validation == 0
    assert record.evaluation.thresholds.chosen_on == "train, out of fold"
    assert record.evaluation.thresholds.values["rare"] < 0.5
    assert "on held-out folds of the training split" in (tmp_path / "run/README.md").read_text()


def test_the_next_run_does_not_inherit_thresholds(
    recipe: Recipe, tiny_bert: Path, tagged: Path, tmp_path: Path
) -> None:
    _run(recipe, tiny_bert, tagged, tmp_path / "first", "--strategy", "head", *TUNED)
    record = _run(recipe, tmp_path / "first", tagged, tmp_path / "second", "--strategy", "head")
    assert record.evaluation.thresholds is None
    finished = load_finished(str(tmp_path / "second"))
    assert read_thresholds(finished.predictor.model.config) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--strategy", "full"), "--thresholds needs a validation split"),
        (("--label_column", "colour"), "--thresholds tuned does not fit single_label"),
        (("--strategy", "lora", "--keep_adapter"), "--thresholds tuned with --keep_adapter"),
    ],
)
def test_where_thresholds_cannot_be_tuned_is_one_error_and_a_hint(
    flags: tuple[str, ...], message: str, recipe: Recipe, tiny_bert: Path, tmp_path: Path
) -> None:
    _tagged(tmp_path / "rows.jsonl", 60, 0)
    rows = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    coloured = [json.dumps({**row, "colour": row["text"].split()[0]}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(coloured))
    ended = recipe(
        *("text_classification", "--model_name_or_path", tiny_bert, "--dataset_name"),
        *(tmp_path / "rows.jsonl", "--text_column", "text", "--output_dir", tmp_path / "run"),
        *("--use_cpu", *TUNED, *flags),
    )
    assert ended.code == 2, ended.err
    said = [line for line in ended.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.split(":")[0] for line in said] == ["error", "hint"]
    assert message in said[0]
    assert not (tmp_path / "run").exists()
