"""The saved model, loaded plainly and asked row by row, answers as the record says."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_transfer import (
    choose_plan,
    evaluate,
    load_checkpoint,
    load_data,
    run_plan,
    save,
)
from hf_transfer.config.data import DataConfig
from hf_transfer.config.evaluation import EvaluationConfig
from hf_transfer.config.model import ModelConfig
from hf_transfer.config.run import RunConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.models.head import read_logits
from hf_transfer.tasks import find_task
from tests.architectures.conftest import Architecture, Subject
from tests.words import WORDS, word_tokenizer

ROWS = 40
TIED = 1e-4  # top two logits nearer than this: rounding decides

# Whose answer to a text is not one.
LEFT_OUT = {
    "bros": "needs the place of each word on a page",
    "layoutlmv2": "needs the image of a page",
    "reformer": "its axial positions train on texts of one length alone",
}


def _texts(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(ROWS):
            # Not shorter: alone, Funnel and CANINE cannot pool so few tokens.
            words = rng.choice(WORDS[1:], rng.integers(3, 12)).tolist()
            rows.writerow([" ".join(["red", *words] if number % 2 else words), "ab"[number % 2]])
    return path


def _run(model: Path, texts: Path, out: Path) -> str | None:
    """Fine-tune as a recipe does; the padding that was found."""
    training = TrainingConfig(
        output_dir=str(out), use_cpu=True, num_train_epochs=1, disable_tqdm=True, report_to="none"
    )
    config = RunConfig(
        training=training,
        task="text-classification",
        model=ModelConfig(str(model)),
        data=DataConfig(str(texts)),
        transfer=TransferConfig(strategy="full", pooling="own"),
    )
    data = load_data(config.data, config.task, 0)
    checkpoint = load_checkpoint(config.model, data)
    choice = choose_plan(config.transfer, checkpoint, data, training, config.cache)
    trained = run_plan(choice.plan, checkpoint, data, training)
    save(trained, evaluate(trained, data, EvaluationConfig(), choice), config)
    return trained.encoder.padding


def require_same_alone(out: Path, texts: Path) -> None:
    """Assert that each test row, asked alone, gives the record's accuracy and log loss."""
    from hf_transfer.record import read_record

    record = read_record(out / "record.json")
    data = load_data(DataConfig(str(texts)), find_task("text-classification"), 0)
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = []
    for text in data.test["text"]:
        set_seed(0)
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt", truncation=True)
            rows.append(read_logits(model(**inputs))[0].double())
    logits = torch.stack(rows)
    labels = torch.tensor(data.test["label"][:])
    top = logits.topk(2).values
    tied = int((top[:, 0] - top[:, 1] < TIED).sum())
    correct = int((logits.argmax(-1) == labels).sum())
    recorded = record.metrics["accuracy"].value * len(labels)
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert loss == pytest.approx(record.metrics["log_loss"].value, abs=1e-3)
    assert abs(correct - recorded) <= tied


def test_asked_alone_it_answers_as_recorded(
    architecture: Architecture,
    make_subject: Callable[[Architecture], Subject],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    if architecture.task.name != "text-classification":
        pytest.skip("no text")
    if architecture.model_type in LEFT_OUT:
        pytest.skip(LEFT_OUT[architecture.model_type])
    try:
        subject = make_subject(architecture)
    except ImportError as error:
        pytest.skip(str(error).splitlines()[1])
    model = Path(shutil.copytree(subject.folder, tmp_path / "model"))
    # On the left: wrong for most, right for some.
    word_tokenizer(padding_side="left").save_pretrained(model)
    texts = _texts(tmp_path / "texts.csv")
    record_property("padding", _run(model, texts, tmp_path / "out"))
    require_same_alone(tmp_path / "out", texts)
