"""Compare strategies: strategies x labels per class x draws, a run each."""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from hf_transfer.config.run import STUDY_FILE, RunConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.data.sources import load_data
from hf_transfer.evaluation.evaluate import evaluate
from hf_transfer.models.checkpoint import load_checkpoint, load_preparation
from hf_transfer.record import RunRecord, read_record
from hf_transfer.resume.run_spec import require_same
from hf_transfer.sealed import write_atomically
from hf_transfer.studies.choose import choose_plan
from hf_transfer.studies.compare_tables import Cell
from hf_transfer.studies.quiet import only_warnings
from hf_transfer.training.engine import run_plan

# Flags that do not change the record of a run, or that each run has of its own.
# fmt: off
NEUTRAL_SETTINGS = (
    "output_dir", "logging_dir", "disable_tqdm", "overwrite_output_dir", "hub_token", "strategy",
    "cache_frozen", "cache_inputs", "cache_dir", "cache_limit_gb",
)
# fmt: on


def compare(config: RunConfig) -> dict[Cell, RunRecord]:
    """The records of all cells; those that an earlier call left in the output folder are read.

    The draws are paired: within a draw all strategies learn from the same labels, nested over the
    budgets. Nothing is written before the first run is done; `--overwrite_output_dir` starts over.
    Raises UserError if the folder holds another study.
    """
    state = PartialState()
    folder = config.output_dir / "runs"
    study = config.output_dir / STUDY_FILE
    spec = _describe_study(config)
    if state.is_main_process:
        if config.training.overwrite_output_dir:
            study.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        if study.exists():
            before = json.loads(study.read_text(encoding="utf-8"))
            hint = "name another --output_dir, or give --overwrite_output_dir to start over"
            require_same(before, spec, study.parent, "study", hint)
    state.wait_for_everyone()
    records = {}
    for cell in tqdm(list(_cells(config)), desc="runs", disable=not state.is_main_process):
        path = folder / f"{cell.name}.json"
        if not path.exists():
            with only_warnings():
                record = _run(cell, config)
            if state.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(study, json.dumps(spec, indent=2))
                write_atomically(path, record.to_json_string())
            state.wait_for_everyone()
        records[cell] = read_record(path)
    return records


def _describe_study(config: RunConfig) -> dict[str, Any]:
    """The flags that decide the records of a study, as JSON gives them back."""
    settings = asdict(config.model) | asdict(config.data) | asdict(config.transfer)
    settings |= asdict(config.evaluation) | {"task": config.task} | config.training.to_dict()
    flags = {f"--{name}": settings[name] for name in settings if name not in NEUTRAL_SETTINGS}
    return dict(json.loads(json.dumps(flags, default=str)))


def _cells(config: RunConfig) -> Iterator[Cell]:
    study = config.study
    draws = range(study.draws)
    for budget, draw, strategy in itertools.product(study.budgets, draws, study.strategies):
        yield Cell(strategy, budget, config.training.seed + draw)


def _run(cell: Cell, config: RunConfig) -> RunRecord:
    data_config = replace(
        config.data, examples_per_class=cell.budget, problem_type="single_label_classification"
    )
    preparation = load_preparation(config.model, config.task, config.cache)
    data = load_data(data_config, config.task, cell.seed, preparation)
    checkpoint = load_checkpoint(config.model, data, cell.seed)
    # The study resumes cell by cell: no training state within one.
    training = config.training.changed(seed=cell.seed, output_dir=None)
    transfer = TransferConfig(**{**asdict(config.transfer), "strategy": cell.strategy})
    choice = choose_plan(transfer, checkpoint, data, training, config.cache)
    trained = run_plan(choice.plan, checkpoint, data, training, config.cache)
    return evaluate(trained, data, config.evaluation, choice)
