"""The record names the precision that was computed in, not the one that was asked for."""

from dataclasses import replace
from pathlib import Path

import pytest

from hf_transfer.config.data import DataConfig
from hf_transfer.config.evaluation import EvaluationConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.data.sources import load_data
from hf_transfer.evaluation.evaluate import evaluate
from hf_transfer.studies.choose import choose_plan
from hf_transfer.training.engine import run_plan
from tests import checkpoints


@pytest.mark.parametrize(
    ("flags", "expected"), [({}, "fp32"), ({"bf16": True}, "bf16"), ({"fp16": True}, "fp32")]
)
def test_half_precision_that_the_device_does_not_have_is_not_recorded(
    flags: dict[str, bool], expected: str, tiny_vit: Path
) -> None:
    config = DataConfig(dataset_name="builtin:digits", examples_per_class=2)
    data = load_data(config, "image-classification", seed=0)
    data = replace(data, splits={**data.splits, "test": data.test.select(range(20))})
    checkpoint = checkpoints.load(str(tiny_vit), data.task, data.labels)
    training = TrainingConfig(use_cpu=True, disable_tqdm=True, **flags)
    choice = choose_plan(TransferConfig(strategy="head"), checkpoint, data, training)
    trained = run_plan(choice.plan, checkpoint, data, training)
    record = evaluate(trained, data, EvaluationConfig(baselines=[]), choice)
    assert record.model.hyperparameters["precision"] == expected
