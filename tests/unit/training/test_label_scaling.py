import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from hf_transfer.config.data import DataConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import Data, load_data
from hf_transfer.tasks import find_task
from hf_transfer.training.label_scaling import (
    LabelScale,
    fit_label_scale,
    scale_labels,
    unscale_head,
)
from tests import checkpoints

TEXTS = find_task("text-classification")


@pytest.fixture
def prices(tmp_path: Path) -> Data:
    rows = [{"text": ("cat", "dog")[n % 2], "price": 300_000 + 10_000 * (n % 2)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = DataConfig(
        str(tmp_path / "rows.jsonl"), label_column="price", problem_type="regression"
    )
    return load_data(config, TEXTS, seed=0)


@pytest.fixture
def tiny_gpt2(tmp_path: Path, tiny_bert: Path) -> Path:
    """Its output layer has no bias."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_bert)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=0
    )
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize(
    ("name", "offset", "factor"), [("tiny_bert", 305_000, 5_000), ("tiny_gpt2", 0, 305_041)]
)
def test_a_model_trained_on_scaled_labels_predicts_in_their_unit(
    name: str, offset: float, factor: float, prices: Data, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    checkpoint = checkpoints.load(str(folder), TEXTS, prices.labels, problem_type="regression")
    scale = fit_label_scale(prices, checkpoint)
    assert (scale.offset, scale.factor) == (pytest.approx(offset), pytest.approx(factor, rel=1e-5))
    encoder = make_encoder(TEXTS, checkpoint.processor, checkpoint.model.config)
    rows = list(encoder.rows(prices.train))
    batch = scale_labels(encoder, scale).collate(rows)
    labels = batch.pop("labels").numpy()
    assert labels * scale.factor + scale.offset == pytest.approx(
        np.asarray(prices.train["label"][:])
    )
    with torch.no_grad():
        before = checkpoint.model.eval()(**batch).logits
        unscale_head(checkpoint, scale)
        after = checkpoint.model(**batch).logits
    assert torch.allclose(after, before * scale.factor + scale.offset, rtol=1e-4)


def test_classes_have_no_scale(tiny_bert: Path, text_file: Path) -> None:
    data = load_data(DataConfig(str(text_file), label_column="animal"), TEXTS, seed=0)
    checkpoint = checkpoints.load(str(tiny_bert), TEXTS, data.labels)
    assert fit_label_scale(data, checkpoint) == LabelScale()
