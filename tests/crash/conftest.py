"""Four tiny models that killed runs must finish, their processes, and the tables of the outcomes."""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.runs import Crashes, Outcome, Subject, table
from tests.forked import ForkServer, fork_server

OURS, CONTROL = "hf_transfer", "a bare transformers.Trainer, resumed as its documentation shows"
MIN_SHOWN = 40  # trials; a sample has no table

_outcomes: dict[str, dict[tuple[str, int], list[Outcome]]] = {
    OURS: defaultdict(list),
    CONTROL: defaultdict(list),
}


@pytest.fixture(scope="session")
def outcomes() -> dict[str, dict[tuple[str, int], list[Outcome]]]:
    """The outcomes of all trials, for the tables."""
    return _outcomes


@pytest.fixture(scope="session")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashes]:
    """What kills runs; those that resume are children of another process, in which hash() has another seed."""
    second = ForkServer(tmp_path_factory.mktemp("second-server"))
    yield Crashes(
        fork_server(tmp_path_factory.getbasetemp()), second, tmp_path_factory.mktemp("crashes")
    )
    second.close()


@pytest.fixture(scope="session")
def subjects(
    picture_folder: Path,
    text_file: Path,
    tiny_vit: Path,
    tiny_resnet: Path,
    tiny_bert: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Subject]:
    """ViT and DINOv2 (whose checkpoints name weights otherwise than the model), ResNet (BatchNorm), BERT."""
    folder = tmp_path_factory.mktemp("killed-models")
    vit = _with_dropout(tiny_vit, folder / "vit")
    dinov2 = _save_dinov2(folder / "dinov2", processor=tiny_vit)
    texts = (
        "--dataset_name",
        str(text_file),
        "--text_column",
        "sentence",
        "--label_column",
        "animal",
    )
    texts += ("--max_train_samples", "60")
    return {
        "ViT": _image("ViT", vit, "head_then_full", picture_folder),
        "DINOv2": _image("DINOv2", dinov2, "full", picture_folder),
        "ResNet": _image("ResNet", tiny_resnet, "full", picture_folder),
        "BERT": Subject(
            "BERT",
            "text_classification",
            ("--model_name_or_path", str(tiny_bert), "--strategy", "gradual", *texts),
            (str(tiny_bert), str(text_file)),
        ),
    }


def _image(name: str, model: Path, strategy: str, data: Path) -> Subject:
    flags = (
        "--model_name_or_path",
        str(model),
        "--dataset_name",
        str(data),
        "--strategy",
        strategy,
    )
    return Subject(
        name, "image_classification", (*flags, "--augmentation", "light"), (str(model), str(data))
    )


def _with_dropout(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings.update(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def _save_dinov2(folder: Path, processor: Path) -> Path:
    from transformers import Dinov2Config, Dinov2ForImageClassification, set_seed

    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=16,
        patch_size=4,
        num_labels=7,
        hidden_dropout_prob=0.1,
        drop_path_rate=0.1,
    )
    set_seed(0)
    Dinov2ForImageClassification(config).save_pretrained(folder)
    shutil.copy(processor / "preprocessor_config.json", folder)
    return folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the tables."""
    for title, rows in _outcomes.items():
        if sum(map(len, rows.values())) >= MIN_SHOWN:
            terminalreporter.write_line("")
            for line in (f"killed by SIGKILL: {title}", *table(rows)):
                terminalreporter.write_line(line)
