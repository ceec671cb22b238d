import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hf_transfer.data.pixels import read_image
from hf_transfer.models.locate import local_name
from hf_transfer.record import (
    BaseModelFacts,
    CardFacts,
    DroppedExample,
    LinearProbeFacts,
    RunRecord,
    ThresholdFacts,
)
from hf_transfer.sharing import plots
from hf_transfer.sharing.card import (
    card_metadata,
    render_card,
    require_complete,
    show_plain,
)
from hf_transfer.sharing.render import document_names, write_documents
from hf_transfer.sharing.report import render_report
from tests.unit.sharing.example import (
    HEAD,
    example_record,
    multi_label_record,
    regression_record,
)

REVIEWED = Path(__file__).with_name("reviewed_card.md")


def test_the_whole_card_is_the_one_that_was_reviewed() -> None:
    # To accept a change: read the new card, then write it over reviewed_card.md.
    assert str(render_card(example_record())) == REVIEWED.read_text(encoding="utf-8")


def test_the_metadata_is_complete_and_survives_a_round_trip() -> None:
    metadata = ModelCard(str(render_card(example_record()))).data
    assert metadata.license == "mit"
    assert metadata.base_model == "org/vit"
    assert metadata.to_dict()["base_model_relation"] == "finetune"
    assert metadata.pipeline_tag == "image-classification"
    assert metadata.datasets == ["org/animals"]
    results = {result.metric_type: result.metric_value for result in metadata.eval_results}
    assert results == {"accuracy": 0.912, "f1": 0.901, "log_loss": 0.31}


def test_card_and_report_count_what_was_left_out_by_reason_and_only_then() -> None:
    record = example_record()
    reasons = (
        "no label",
        "the image cannot be read: truncated",
        "the image cannot be read: its format",
    )
    dropped = [DroppedExample(f"train/{number}", reason) for number, reason in enumerate(reasons)]
    damaged = replace(record, dataset=replace(record.dataset, dropped=dropped))
    said = "left out because they cannot be used: no label (1), the image cannot be read (2)."
    for render in (lambda r: str(render_card(r)), lambda r: render_report(r, {})):
        assert said in render(damaged).replace("&#39;", "'")
        assert "left out" not in render(record)


def test_what_is_not_on_the_hub_is_not_linked_to_it() -> None:
    record = example_record()
    record = replace(
        record,
        base_model=BaseModelFacts("builtin:letters-resnet", None, "apache-2.0"),
        dataset=replace(record.dataset, id="local:images", revision=None),
    )
    text = str(render_card(record))
    assert "base_model:" not in text
    assert "datasets:" not in text
    assert "huggingface.co/local" not in text
    assert "`images` (not published)" in text


def test_the_publishers_licence_wins_over_the_base_models() -> None:
    record = example_record(card=CardFacts("me/animals", "apache-2.0", "en"))
    assert card_metadata(record).license == "apache-2.0"
    assert card_metadata(record).language == "en"


def test_an_unknown_licence_is_said_to_be_unknown() -> None:
    record = example_record(base_model=BaseModelFacts("org/vit", "a" * 40, None))
    assert card_metadata(record).license == "unknown"
    assert "ask before you reuse it" in str(render_card(record))


@pytest.mark.parametrize(
    "gap",
    [
        "[More Information Needed]",
        f"see {Path.home()}/x.csv" if len(str(Path.home())) > 5 else f"see {Path.cwd()}",
    ],
)
def test_a_card_with_a_gap_or_a_local_path_is_an_error(gap: str) -> None:
    with pytest.raises(ValueError, match="the card holds"):
        require_complete(str(render_card(example_record())) + gap)


def test_a_card_without_results_is_an_error() -> None:
    with pytest.raises(ValueError, match="the card lacks license"):
        require_complete("---\ntags: [x]\n---\n# x")


def test_many_classes_are_summed_up() -> None:
    record = example_record()
    rows = [replace(record.evaluation.per_class[0], label=f"class {n}") for n in range(100)]
    record = replace(
        record,
        dataset=replace(record.dataset, labels=[row.label for row in rows]),
        evaluation=replace(record.evaluation, per_class=rows),
    )
    text = str(render_card(record))
    assert "and 40 more" in text
    assert "The metrics of all 100 classes" in text


def test_the_card_of_several_labels_speaks_of_labels_and_shows_no_confusion() -> None:
    text = str(render_card(multi_label_record()))
    assert "Predicts which of 3 labels apply to images" in text
    assert "| exact match | **81.0 %** | 79.0 – 83.0 % | 10.0 % | 10.0 % |" in text
    assert "| cow | 50 | 86.0 % |" in text
    assert 'classify("image.png", top_k=3)' in text
    assert "class " not in text.split("\n---\n")[1]
    assert "confusion" not in text


def test_the_card_of_tuned_thresholds_shows_how_to_use_them_and_what_a_half_would_give() -> None:
    record = multi_label_record()
    plain = {"f1_macro": record.metrics["exact_match"]}
    thresholds = ThresholdFacts({"ant": 0.2, "bee": 0.5, "cow": 0.6}, "validation", plain)
    evaluation = replace(record.evaluation, thresholds=thresholds)
    text = str(render_card(replace(record, evaluation=evaluation)))
    assert "with the highest F1 on the validation split. With 0.5 for all labels" in text
    assert "With 0.5 for all labels: F1 (macro) 81.0 %." in text
    assert 'found = classify("image.png", top_k=3)  # a path' in text
    assert 'each["score"] > thresholds[each["label"]]' in text
    assert "above 0.5 apply" not in text
    assert "label_thresholds" not in str(render_card(record))


def test_the_card_of_a_regression_speaks_of_the_number_and_shows_truth_and_answer() -> None:
    text = str(render_card(regression_record()))
    assert 'Estimates the number "price" from images' in text
    assert "| RMSE | **12,346** | 11,846 – 12,846 | 28,000 |" in text
    assert "![truth and answer](plots/truth_and_answer.png)\n" in text
    assert "title = {me/animals: regression of price from images}" in text
    assert "standardized" in text
    assert "class" not in text.replace("classification", "").split("\n---\n")[1]


@pytest.mark.parametrize("record", [example_record(), multi_label_record(), regression_record()])
def test_the_plots_and_the_report_fit_the_problem_type(record: RunRecord, tmp_path: Path) -> None:
    write_documents(record, tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(document_names(record))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert {name for name in written if name.endswith(".png")} == set(
        re.findall(r"plots/\w+\.png", card)
    )
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("Metrics by" in report) == (record.problem_type != "regression")


def test_a_head_that_was_solved_has_a_strength_and_no_learning_curve(tmp_path: Path) -> None:
    record = example_record()
    solved = replace(HEAD, epochs=0.0, steps=0, history=[], solved=LinearProbeFacts(0.0316))
    record = replace(record, phases=[solved])
    write_documents(record, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (
        "| solved on features that were computed once | L2 0.032 | chosen by cross-validation |"
        in card
    )
    assert "learning_curve" not in card
    assert "plots/learning_curve.png" not in document_names(record)
    assert not (tmp_path / "plots" / "learning_curve.png").exists()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.3104, "0.310"), (-0.0001, "0.000"), (12345.6, "12,346"), (-1.5, "-1.500")],
)
def test_large_figures_have_no_decimals_and_nothing_is_less_than_zero_by_rounding(
    value: float, shown: str
) -> None:
    assert show_plain(value) == shown


def test_the_report_holds_its_images_and_escapes_names() -> None:
    record = example_record(card=CardFacts("a<b", None, None))
    page = render_report(record, {"confusion matrix": b"png"})
    assert "a&lt;b" in page
    assert "data:image/png;base64,cG5n" in page


def test_the_same_record_gives_the_same_images() -> None:
    first, second = (plots.as_png(plots.confusion_matrix(example_record())) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")


def test_the_learning_curve_marks_the_phases_and_the_best_step() -> None:
    axes = plots.learning_curve(example_record()).axes[0]
    verticals = [
        line.get_xdata()[0]
        for line in axes.get_lines()
        if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert {0, 40, 60} <= set(verticals)


def test_the_card_of_an_adapter_says_so_and_how_to_load_it_with_its_base_model() -> None:
    record = example_record()
    text = str(render_card(replace(record, model=replace(record.model, adapter="lora"))))
    assert "library_name: peft" in text
    assert "base_model_relation: adapter" in text
    assert (
        'AutoModelForImageClassification.from_pretrained(\n    "org/vit",\n    revision="aaaa'
        in text
    )
    assert "PeftModel.from_pretrained(model, name).merge_and_unload()" in text
    assert 'pipeline("image-classification", model=model, image_processor=processor)' in text


@pytest.mark.parametrize(
    ("kinds", "said", "line"),
    [
        ({"16-bit grey": 80}, "80 (16-bit grey: 80) of the images", "// 257"),
        ({"transparent": 1}, "1 (transparent: 1) of the images", "alpha_composite"),
        ({"floating-point grey": 2}, "2 (floating-point grey: 2) of the images", "* 255"),
    ],
)
def test_the_card_says_what_a_plain_pipeline_reads_otherwise_and_the_line_that_converts_it(
    kinds: dict[str, int], said: str, line: str
) -> None:
    record = example_record()
    text = str(render_card(replace(record, dataset=replace(record.dataset, image_kinds=kinds))))
    assert said in text
    assert line in text
    assert "Convert such an image first" not in str(render_card(record))


def test_the_lines_that_convert_give_what_training_saw(tmp_path: Path) -> None:
    """Run the card's lines for each kind of image."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    clear = Image.fromarray(grey)
    clear.putalpha(Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)))
    images = {
        "16-bit grey": Image.fromarray(grey.astype(np.uint16) * 257),
        "floating-point grey": Image.fromarray((grey / 255).astype(np.float32)),
        "transparent": clear,
    }
    record = example_record()
    for kind, image in images.items():
        dataset = replace(record.dataset, image_kinds={kind: 1})
        text = str(render_card(replace(record, dataset=dataset)))
        (line,) = [each for each in text.splitlines() if each.startswith("image = ")]
        names = {"image": image, "Image": Image, "numpy": np}
        exec(line, names)
        assert names["image"].convert("RGB").tobytes() == read_image(image).tobytes()


def test_where_padding_decides_the_card_says_to_give_one_text_at_a_time() -> None:
    record = example_record(task="text-classification")
    for padding, is_said in (("none", True), ("right", False), (None, False)):
        text = str(render_card(replace(record, model=replace(record.model, padding=padding))))
        assert ("depends on the padding beside it" in text) == is_said


@pytest.mark.parametrize(
    ("location", "model"),
    [
        ("out/pets", '"out/pets")'),
        (".", '".")  # the folder of this file'),
        (None, '"me/animals")'),
    ],
)
def test_the_lines_to_use_it_run_where_the_model_is(location: str | None, model: str) -> None:
    record = example_record()
    text = str(render_card(replace(record, card=replace(record.card, location=location))))
    assert f'pipeline("image-classification", model={model}' in text


def test_a_class_is_weakest_only_if_no_other_is_as_weak() -> None:
    record = example_record()
    rows = record.evaluation.per_class
    alike = [replace(row, f1=rows[0].f1) for row in rows]
    evaluation = replace(record.evaluation, per_class=alike)
    assert "It is weakest on" in str(render_card(record))
    assert "It is weakest on" not in str(render_card(replace(record, evaluation=evaluation)))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("pets/model", "pets/model"),
        ("pets/checkpoint-500", "pets/checkpoint-500"),
        ("models/vit", "vit"),
        ("a/Output", "a/Output"),
    ],
)
def test_a_folder_whose_name_says_nothing_is_named_with_the_one_around_it(
    folder: str, name: str
) -> None:
    assert local_name(Path("/x") / folder) == name
