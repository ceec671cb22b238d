from dataclasses import fields

import pytest
from datasets import Dataset, Features, Image, Value

from hf_transfer.config.data import DataConfig
from hf_transfer.data.columns import find_columns, require_same_columns
from hf_transfer.data.labels import LABEL_KINDS
from hf_transfer.errors import UserError
from hf_transfer.tasks import TASKS, find_task

IMAGES, TEXTS = find_task("image-classification"), find_task("text-classification")


def _rows(*columns: str) -> Dataset:
    return Dataset.from_dict({column: ["a"] for column in columns})


def test_the_usual_names_come_before_all_other_columns_of_texts() -> None:
    columns = find_columns(_rows("url", "sentence", "class"), DataConfig(), TEXTS)
    assert columns == {"text": "sentence", "label": "class"}


def test_the_only_column_of_texts_needs_no_usual_name() -> None:
    assert find_columns(_rows("words", "label"), DataConfig(), TEXTS)["text"] == "words"
    with pytest.raises(UserError, match="which column holds the text is not clear"):
        find_columns(_rows("words", "url", "label"), DataConfig(), TEXTS)


def test_images_are_found_by_their_kind() -> None:
    features = Features({"scan": Image(), "text": Value("string"), "label": Value("int64")})
    rows = Dataset.from_dict({"scan": [], "text": [], "label": []}, features=features)
    assert find_columns(rows, DataConfig(), IMAGES) == {"image": "scan", "label": "label"}


def test_a_pair_of_texts_has_two_columns() -> None:
    config = DataConfig(text_column="a", text_pair_column="b")
    columns = find_columns(_rows("a", "b", "label"), config, TEXTS)
    assert columns == {"text": "a", "label": "label", "text_pair": "b"}


def test_flags_of_one_modality_are_refused_by_every_task_of_another() -> None:
    marked = {
        f.name: f.metadata["modality"] for f in fields(DataConfig) if "modality" in f.metadata
    }
    assert marked == {
        "image_column": "image",
        "text_column": "text",
        "text_pair_column": "text",
        "max_length": "text",
        "audio_column": "audio",
        "max_seconds": "audio",
    }
    assert set(marked.values()) <= {task.modality for task in TASKS.values()}
    for flag, modality in marked.items():
        foreign = [task for task in TASKS.values() if task.modality != modality]
        assert foreign
        for task in foreign:
            config = DataConfig(**{flag: 8 if flag.startswith("max_") else "text"})
            with pytest.raises(UserError, match=f"--{flag} does not belong to {task.name}"):
                find_columns(_rows("text", "label"), config, task)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (_rows("label"), "the split 'test' has no column 'text' of texts"),
        (_rows("text"), "the split 'test' has no column 'label' of labels"),
        (
            Dataset.from_dict({"text": [1], "label": ["a"]}),
            "the split 'test' has no column 'text' of texts",
        ),
        (
            Dataset.from_dict({"text": ["a"], "label": [0.5]}),
            "the split 'test' has other labels than the training split",
        ),
    ],
)
def test_a_split_with_other_columns_is_refused(test: Dataset, message: str) -> None:
    splits = {"train": _rows("text", "label"), "test": test}
    columns = {"text": "text", "label": "label"}
    with pytest.raises(UserError, match=message):
        require_same_columns(splits, columns, TEXTS, LABEL_KINDS["single_label_classification"])
