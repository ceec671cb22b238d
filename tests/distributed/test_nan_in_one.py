"""Two real processes over gloo, of which one finds that its gradient is not finite."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_transfer.record import read_record
from hf_transfer.resume.states import States
from tests.conftest import ROOT
from tests.forked import ForkServer, Started

SCRIPT = str(Path(__file__).parent / "nan_in_one.py")


def _run(forked: ForkServer, when: str, model: Path, pictures: Path, *flags: str) -> list[Started]:
    recipe = str(ROOT / "recipes" / "image_classification.py")
    given = [
        "--model_name_or_path",
        str(model),
        "--dataset_name",
        str(pictures),
        "--strategy",
        "full",
        *flags,
    ]
    rest = [
        "--max_steps",
        "6",
        "--use_cpu",
        "--disable_tqdm",
        "true",
        "--per_device_train_batch_size",
        "2",
    ]
    processes = forked.start_several(2, SCRIPT, when, recipe, *given, *rest)
    for process in processes:
        process.wait()
    return processes


@pytest.mark.parametrize("when", ["before", "after"])
def test_both_processes_end_at_the_step_with_one_message_and_one_state(
    when: str, forked: ForkServer, tiny_resnet: Path, picture_folder: Path, tmp_path: Path
) -> None:
    processes = _run(
        forked, when, tiny_resnet, picture_folder, "--output_dir", str(tmp_path / "run")
    )
    said = "".join(process.said for process in processes)
    assert [process.code for process in processes] == [2, 2], said
    assert said.count("the loss or its gradient is not finite at step 3 of 6 (examples train/") == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    ids = line.split("(examples ")[1].split(")")[0].split(", ")
    assert len(set(ids)) == 4  # of both processes
    state = States(tmp_path / "run" / "checkpoints").newest()
    assert state is not None
    assert state.facts["step"] == 2
    weights = state.load("weights")
    assert len(weights) > 20
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_both_processes_skip_the_step_and_name_it_once(
    forked: ForkServer, tiny_resnet: Path, picture_folder: Path, tmp_path: Path
) -> None:
    flags = ("--output_dir", str(tmp_path / "run"), "--on_nan", "rollback")
    processes = _run(forked, "after", tiny_resnet, picture_folder, *flags)
    said = "".join(process.said for process in processes)
    assert [process.code for process in processes] == [0, 0], said
    assert said.count("step 3 is skipped, not finite: examples") == 1
    (skipped,) = read_record(tmp_path / "run" / "record.json").phases[0].skipped_steps
    assert skipped.step == 2
    assert len(set(skipped.ids)) == 4
    assert all(
        torch.isfinite(tensor).all()
        for tensor in load_file(tmp_path / "run" / "model.safetensors").values()
    )
