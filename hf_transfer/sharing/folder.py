"""The folder of a run: written completely or not at all, then pushed if requested."""

import json
import logging
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from hf_transfer.config.run import CHECKPOINTS, RunConfig
from hf_transfer.evaluation.metrics import find_metric
from hf_transfer.models.adapters import save_adapter
from hf_transfer.record import CardFacts, RunRecord
from hf_transfer.resume.run_folder import finish, write_run_file
from hf_transfer.sealed import staged_folder
from hf_transfer.sharing.card import BASELINE_NAMES, show_plain
from hf_transfer.sharing.hub import published_files, push
from hf_transfer.sharing.render import document_names, write_documents
from hf_transfer.sharing.verify import verify
from hf_transfer.training.engine import Trained

log = logging.getLogger(__name__)


def save(trained: Trained, record: RunRecord, config: RunConfig) -> RunRecord:
    """The record as it was saved: the run is written, summarized in the log, pushed if requested.

    The output folder then holds weights, processor, record.json, report.html, plots and card, and
    the training states in it are removed.
    """
    record = write_run(trained, record, config)
    log_summary(record, config)
    publish(config)
    return record


def write_run(trained: Trained, record: RunRecord, config: RunConfig) -> RunRecord:
    """The record as it was written to the output folder, with the files of the run.

    All files are written below checkpoints/ first and moved at the end, record.json last. Only the
    main process writes; the others wait.
    """
    state = PartialState()
    if state.is_main_process:
        name = str(config.hub.hub_model_id) if config.hub else config.output_dir.resolve().name
        location = None if config.hub else _location(config.output_dir)
        card = CardFacts(name, config.card.license, config.card.language, location)
        # If the process is killed, the next one there removes the folder.
        with staged_folder(config.output_dir / CHECKPOINTS / "output") as stage:
            keep_adapter = config.transfer.keep_adapter
            record = _write_files(trained, replace(record, card=card), stage, keep_adapter)
            # Before there is a model that could be taken for that of another run.
            write_run_file(config.output_dir)
            _move_files(stage, config.output_dir)
    state.wait_for_everyone()
    return record


def _location(folder: Path) -> str:
    """The output folder as it was given, or "." where that would name a place of the machine."""
    is_below = not folder.is_absolute() and ".." not in folder.parts
    return folder.as_posix() if is_below else "."


def log_summary(record: RunRecord, config: RunConfig) -> None:
    """Log the metrics beside the baselines, and the commands to type next."""
    folder = config.output_dir
    log.info(
        "\n%s\n\n  %d training examples, strategy %s, %d test examples, %.0f s\n\n"
        "  look at it   %s\n  use it       hf-transfer predict %s FILE\n"
        "  share it     hf-transfer run push_to_hub --output_dir %s --hub_model_id YOU/%s\n",
        "\n".join(_summary_row(name, record) for name in record.metrics),
        record.dataset.splits.train,
        record.strategy.used,
        record.evaluation.n,
        record.timings.total_s,
        folder / "report.html",
        folder,
        folder,
        folder.name,
    )


def publish(config: RunConfig) -> None:
    """Push the run and verify it, if requested; on the main process. Then remove its states."""
    if not PartialState().is_main_process:
        return
    if config.hub:
        published = push(config.output_dir, config.hub)
        verify(published, config.output_dir, config.hub.hub_token)
    finish(config.output_dir, published=config.hub is not None)


def _summary_row(name: str, record: RunRecord) -> str:
    metric = find_metric(name, record.problem_type)
    measured = record.metrics[name]
    unit = " %" if metric.is_share else "  "

    def show(value: float) -> str:
        return f"{100 * value:.1f}" if metric.is_share else show_plain(value)

    baselines = []
    for baseline, values in record.baselines.items():
        title = BASELINE_NAMES[record.problem_type][baseline]
        baselines.append(f"{title} {show(values[name].value)}")
    thresholds = record.evaluation.thresholds
    if thresholds and name in thresholds.plain:
        baselines.append(f"with 0.5 for all labels {show(thresholds.plain[name].value)}")
    interval = f"{show(measured.low)} to {show(measured.high)}   ({', '.join(baselines)})"
    return f"  {metric.title:<18}{show(measured.value):>7}{unit}   {interval}"


def _write_files(
    trained: Trained, record: RunRecord, folder: Path, keep_adapter: bool
) -> RunRecord:
    checkpoint = trained.checkpoint
    adapter = checkpoint.adapter if keep_adapter else None
    if adapter:
        base = (checkpoint.provenance.location, checkpoint.provenance.revision)
        save_adapter(adapter, checkpoint.model, checkpoint.head, base, folder)
    else:
        checkpoint.model.save_pretrained(folder)
    for name, limit in trained.encoder.limit.items():
        setattr(checkpoint.processor, name, limit)
    checkpoint.processor.save_pretrained(folder)
    _remove_local_paths(folder)
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    files = sorted(written.union(document_names(record)))
    method = str(adapter.settings.peft_type.value).lower() if adapter else None
    record = replace(record, model=replace(record.model, files=files, adapter=method))
    write_documents(record, folder)
    return record


def _remove_local_paths(folder: Path) -> None:
    """Remove from the saved configs the path or id that they were loaded from."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            settings.pop("_name_or_path", None)
            settings.pop("name_or_path", None)
            text = json.dumps(settings, indent=2, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")


def _move_files(stage: Path, folder: Path) -> None:
    """Move a run into its folder, record.json last; of the files there, only a former run's go."""
    folder.mkdir(exist_ok=True)
    if (folder / "record.json").is_file():
        for name in published_files(folder, complete=False):
            (folder / name).unlink(missing_ok=True)
    # safetensors writes files for their owner alone: the others are as the umask says.
    mode = (stage / "record.json").stat().st_mode
    files = filter(Path.is_file, stage.rglob("*"))
    for path in sorted(files, key=lambda path: path.name == "record.json"):
        target = folder / path.relative_to(stage)
        target.parent.mkdir(exist_ok=True)
        path.chmod(mode)
        path.replace(target)
