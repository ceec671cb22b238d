"""The folder of a run: written whole or not at all, then published if asked."""

import json
import logging
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from hf_transfer.config import CHECKPOINTS, RunConfig
from hf_transfer.models.adapters import save_adapter
from hf_transfer.record import RunRecord
from hf_transfer.resume.run_folder import finish, write_run_file
from hf_transfer.sealed import staged_folder
from hf_transfer.sharing.card import BASELINE_NAMES, METRIC_NAMES, SHARES, show_plain
from hf_transfer.sharing.hub import Published, published_files, push
from hf_transfer.sharing.render import document_names, write_documents
from hf_transfer.sharing.verify import verify
from hf_transfer.training.engine import Trained

log = logging.getLogger(__name__)


def save(trained: Trained, record: RunRecord, config: RunConfig) -> RunRecord:
    """The record as it was saved; the folder holds weights, processor, record.json, report.html, plots and card.

    Everything is written under a temporary name in checkpoints/ first and moved in at the end, record.json last.
    Only the main process writes; the others wait.
    """
    state = PartialState()
    if state.is_main_process:
        name = str(config.hub.hub_model_id) if config.hub else config.output_dir.resolve().name
        record = replace(
            record,
            card={"name": name, "license": config.card.license, "language": config.card.language},
        )
        # If the process is killed, the next one there removes the folder.
        with staged_folder(config.output_dir / CHECKPOINTS / "output") as stage:
            record = _write(trained, record, stage, config.transfer.keep_adapter)
            # Before there is a model that another run might be taken to have made.
            write_run_file(config.output_dir)
            _move_in(stage, config.output_dir)
    state.wait_for_everyone()
    return record


def publish(config: RunConfig) -> Published | None:
    """Push the run and prove it, if asked; on the main process only. Then nothing is left to do, and its states go."""
    if not PartialState().is_main_process:
        return None
    published = None
    if config.hub:
        published = push(config.output_dir, config.hub)
        verify(published, config.output_dir, config.hub.hub_token)
    finish(config.output_dir, published is not None)
    return published


def announce(record: RunRecord, config: RunConfig) -> None:
    """Say what a person wants to know at the end of a run, and what to type next."""
    rows = [_summary_row(name, record) for name in record.metrics]
    folder, splits = config.output_dir, record.dataset["splits"]
    log.info(
        "\n%s\n\n  %d training examples, strategy %s, %d test examples, %.0f s\n\n"
        "  look at it   %s\n  use it       hf-transfer predict %s FILE\n  share it     %s\n",
        "\n".join(rows),
        splits["train"],
        record.strategy["used"],
        record.evaluation["n"],
        record.timings["total_s"],
        folder / "report.html",
        folder,
        f"hf-transfer run push_to_hub --output_dir {folder} --hub_model_id YOU/{folder.name}",
    )


def _summary_row(name: str, record: RunRecord) -> str:
    e = record.metrics[name]
    unit, show = (" %", lambda x: f"{100 * x:.1f}") if name in SHARES else ("  ", show_plain)
    names = BASELINE_NAMES[record.problem_type]
    others = [
        f"{names[baseline]} {show(values[name].value)}"
        for baseline, values in record.baselines.items()
    ]
    between = f"{show(e.low)} to {show(e.high)}"
    return f"  {METRIC_NAMES.get(name, name):<18}{show(e.value):>7}{unit}   {between}   ({', '.join(others)})"


def _write(trained: Trained, record: RunRecord, folder: Path, keep_adapter: bool) -> RunRecord:
    checkpoint, adapter = trained.checkpoint, trained.checkpoint.adapter if keep_adapter else None
    if adapter:
        head = {name: checkpoint.model.get_parameter(name) for name in checkpoint.head}
        save_adapter(
            adapter, head, (checkpoint.provenance.location, checkpoint.provenance.revision), folder
        )
    else:
        checkpoint.model.save_pretrained(folder)
    checkpoint.processor.save_pretrained(folder)
    _forget_paths(folder)
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    record = replace(
        record,
        model={
            **record.model,
            "files": sorted(written.union(document_names(record))),
            "adapter": str(adapter.settings.peft_type.value).lower() if adapter else None,
        },
    )
    write_documents(record, folder)
    return record


def _forget_paths(folder: Path) -> None:
    """Take out of the saved configs the path or id that they were loaded from; it may be a path of this machine."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            kept = {
                key: value
                for key, value in settings.items()
                if key not in ("_name_or_path", "name_or_path")
            }
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move_in(stage: Path, folder: Path) -> None:
    """Move a finished run into its folder, record.json last. The files of the run before it go; all others stay."""
    folder.mkdir(exist_ok=True)
    if (folder / "record.json").is_file():
        for name in published_files(folder, whole=False):
            (folder / name).unlink(missing_ok=True)
    files = [path for path in stage.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == "record.json"):
        target = folder / path.relative_to(stage)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
