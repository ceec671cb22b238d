"""Flags: which examples to learn from."""

from dataclasses import dataclass
from typing import Literal

from hf_transfer.config.flag import flag
from hf_transfer.record import ProblemType


@dataclass(frozen=True)
class SourceConfig:
    """The dataset and its columns: what any reader of inputs needs to know."""

    _argument_group_name = "data"

    dataset_name: str | None = flag(
        None,
        "Dataset: an id on the Hub, a folder, a CSV, TSV, JSON Lines, Parquet or CoNLL "
        "file, or "
        "builtin:digits, builtin:docstrings, builtin:identifiers, builtin:languages.",
    )
    dataset_config_name: str | None = flag(None, "Configuration name of the dataset.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of the dataset.")
    image_column: str | None = flag(
        None, "Name of the column with the images. Default: found by type.", modality="image"
    )
    text_column: str | None = flag(
        None, "Name of the column with the texts. Default: found by type.", modality="text"
    )
    text_pair_column: str | None = flag(
        None, "Name of the column with the second text of a pair.", modality="text"
    )
    audio_column: str | None = flag(
        None, "Name of the column with the sounds. Default: found by type.", modality="audio"
    )
    label_column: str | None = flag(
        None,
        "Name of the column with the labels. Default: label, labels, target, class or category; "
        "of tags: ner_tags, tags, ...",
    )
    max_length: int | None = flag(
        None,
        "Maximum length of a text in tokens; longer texts are truncated, those whose words have "
        "tags go through in windows. Default: what the model takes, at most 512.",
        minimum=1,
        modality="text",
    )
    max_seconds: float = flag(
        30.0,
        "Maximum length of a sound in seconds; of longer sounds the beginning is read.",
        above=0,
        modality="audio",
    )
    on_bad_example: Literal["skip", "raise"] = flag(
        "skip",
        "What to do with images and sounds that cannot be read, empty texts, and labels that are "
        "missing or out of range. skip: leave them out and list them in the record, up to 1 "
        "percent of a split; raise: end the run at the first.",
    )


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """The dataset, its columns and its splits."""

    train_split: str = flag("train", "Name of the training split.")
    validation_split: str | None = flag(
        None, "Name of the validation split. Default: the one called validation, valid, val or dev."
    )
    test_split: str | None = flag(None, "Name of the test split. Default: the one called test.")
    group_column: str | None = flag(
        None,
        "Name of the column with the patient, speaker or document of each row. The rows of one "
        "never stand on two sides of a split that is cut here, nor of a fold.",
    )
    problem_type: ProblemType | None = flag(
        None,
        "One class per row, several labels per row, or a number (regression is never "
        "inferred). Default: multi_label_classification for a column of lists, otherwise "
        "single_label_classification.",
    )
    max_train_samples: int | None = flag(None, "Maximum number of training examples.", minimum=1)
    examples_per_class: int | None = flag(
        None,
        "Number of training examples per class. No validation split is cut from them.",
        minimum=1,
    )
