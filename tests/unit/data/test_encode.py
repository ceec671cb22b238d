from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoTokenizer

from hf_transfer.config.data import DataConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import load_data
from hf_transfer.tasks import find_task


def test_texts_are_padded_to_the_longest_of_their_batch(tiny_bert: Path, text_file: Path) -> None:
    task = find_task("text-classification")
    data = load_data(DataConfig(str(text_file), label_column="animal"), task, seed=0)
    encoder = make_encoder(
        task, AutoTokenizer.from_pretrained(tiny_bert), AutoConfig.from_pretrained(tiny_bert)
    )
    rows = encoder.rows(data.train)
    short = sorted(rows, key=lambda row: row["length"])[:4]
    batch = encoder.collate(short)
    assert batch["input_ids"].shape[1] == max(row["length"] for row in short) < max(rows["length"])
    assert set(batch) <= {"input_ids", "attention_mask", "token_type_ids", "labels"}


def test_texts_are_cut_to_what_the_model_takes(tiny_bert: Path) -> None:
    task = find_task("text-classification")
    data = load_data(DataConfig("builtin:docstrings", max_train_samples=50), task, seed=0)
    processor, config = (
        AutoTokenizer.from_pretrained(tiny_bert),
        AutoConfig.from_pretrained(tiny_bert),
    )
    assert max(make_encoder(task, processor, config).rows(data.train)["length"]) == 32
    assert max(make_encoder(task, processor, config, max_length=9).rows(data.train)["length"]) == 9


def test_plain_features_of_images_are_grey_levels() -> None:
    task = find_task("image-classification")
    data = load_data(DataConfig("builtin:digits", examples_per_class=2), task, seed=0)
    assert data.prepared
    train, test = map(data.prepared.thumbnails, (data.train, data.test))
    assert train.shape == (20, 64)
    assert test.shape == (500, 64)
    assert np.all((train >= 0) & (train <= 1))
