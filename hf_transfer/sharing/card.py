"""The model card: a pure function of the record, complete or an error."""

import base64
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_transfer.evaluation.metrics import Metric, find_metric
from hf_transfer.package_files import package_folder
from hf_transfer.record import BaseModelFacts, DatasetFacts, RunRecord
from hf_transfer.tasks import find_task

BASELINE_NAMES = {
    "single_label_classification": {"majority": "majority class", "raw_inputs": "raw inputs"},
    "multi_label_classification": {"majority": "label shares", "raw_inputs": "raw inputs"},
    "regression": {"majority": "mean", "raw_inputs": "raw inputs"},
}
MOST_LABELS_SHOWN = 60
REQUIRED = ("license", "library_name", "pipeline_tag", "tags", "metrics", "model-index")


def render_card(record: RunRecord) -> ModelCard:
    """The card of a run, metadata and prose.

    Raises ValueError if it would be incomplete: a key of the metadata missing, a gap in the text, or a path of the
    machine that made it.
    """
    template = f"{record.task.replace('-', '_')}.md"
    body = _environment(autoescape=False).get_template(template).render(_facts(record))
    card = ModelCard(f"---\n{card_metadata(record).to_yaml()}\n---\n\n{body.strip()}\n")
    require_complete(str(card))
    return card


def render_report(record: RunRecord, pictures: dict[str, bytes]) -> str:
    """The page of a run as one HTML file, its pictures (title -> PNG) inside."""
    encoded = {title: base64.b64encode(png).decode() for title, png in pictures.items()}
    template = _environment(autoescape=True).get_template("report.html")
    return template.render(**_facts(record), pictures=encoded)


def show_value(metric: Metric, value: float) -> str:
    """A value of a metric as text, a share in per cent."""
    return f"{100 * value:.1f} %" if metric.is_share else show_plain(value)


def show_plain(value: float) -> str:
    """A figure that is no share: three decimals, none where it is large."""
    return (
        f"{round(value, 3) + 0.0:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    )  # + 0.0: no minus before 0.000


def card_metadata(record: RunRecord) -> ModelCardData:
    """The YAML block: licence, base model and dataset only where they are on the Hub, results as model-index."""
    base, dataset = record.base_model, record.dataset
    metrics = {name: find_metric(name, record.problem_type) for name in record.metrics}
    results = [
        EvalResult(
            task_type=record.task,
            dataset_type=dataset.id,
            dataset_name=dataset.id.split("/")[-1].split(":")[-1],
            dataset_split=record.evaluation.split,
            dataset_revision=dataset.revision,
            metric_type=metrics[name].hub_id,
            metric_name=metrics[name].title,
            metric_value=round(estimate.value, 4),
        )
        for name, estimate in record.metrics.items()
    ]
    transferred = record.strategy.used != "scratch"
    linked = transferred and base.revision
    adapter = record.model.adapter
    relation = "adapter" if adapter else "finetune"
    on_hub: dict[str, Any] = (
        {"base_model": base.id, "base_model_relation": relation} if linked else {}
    )
    return ModelCardData(
        model_name=record.card.name.split("/")[-1],
        license=record.card.license or (transferred and base.license) or "unknown",
        library_name="peft" if adapter else "transformers",
        pipeline_tag=record.task,
        language=record.card.language,
        datasets=[dataset.id] if dataset.revision else None,
        metrics=sorted({metric.hub_id for metric in metrics.values()}),
        tags=["transfer-learning", "hf-transfer-learning", f"strategy:{record.strategy.used}"],
        eval_results=results,
        **on_hub,
    )


def require_complete(text: str) -> None:
    """Raise ValueError unless a card has all metadata that the Hub reads and no gap or local path in its text."""
    metadata = ModelCard(text).data.to_dict()
    gaps = [key for key in REQUIRED if not metadata.get(key)]
    if gaps:
        raise ValueError(f"the card lacks {', '.join(gaps)}")
    here = [
        str(path)
        for path in (Path.cwd(), Path.home(), package_folder("model_cards"))
        if len(str(path)) > 5
    ]
    found = re.search(
        "more information needed|" + "|".join(map(re.escape, here)), text, re.IGNORECASE
    )
    if found:
        raise ValueError(f"the card holds {found[0]!r}")


def _environment(autoescape: bool) -> Environment:
    folder = FileSystemLoader(package_folder("model_cards"))
    return Environment(
        loader=folder, autoescape=autoescape, undefined=StrictUndefined, keep_trailing_newline=True
    )


def _facts(record: RunRecord) -> dict[str, Any]:
    labels = [_in_table(label) for label in record.dataset.labels]
    per_class = [replace(row, label=_in_table(row.label)) for row in record.evaluation.per_class]
    seen = [row for row in per_class if row.n]
    metrics = record.metrics
    return {
        "r": record,
        "name": record.card.name,
        "task": find_task(record.task),
        "curve": any(phase.history for phase in record.phases),
        "kind": find_task(record.task).modality,
        "labels": labels,
        "shown_labels": _listed(labels),
        "metrics": metrics,
        "baselines": record.baselines,
        "known": {name: find_metric(name, record.problem_type) for name in metrics},
        "baseline_names": BASELINE_NAMES[record.problem_type],
        "show": show_value,
        "level": next(iter(metrics.values())).level,
        "per_class": per_class,
        "weakest": min(seen, key=lambda row: row.f1.value) if len(seen) > 1 else None,
        "base_link": _link(record.base_model, ""),
        "dataset_link": _link(record.dataset, "datasets/"),
        "left_out": Counter(row.reason.partition(":")[0] for row in record.dataset.dropped),
        "hyperparameters": _flat(record.model.hyperparameters),
        "citation_key": re.sub(r"\W+", "_", record.card.name.split("/")[-1]),
    }


def _link(origin: BaseModelFacts | DatasetFacts, prefix: str) -> str:
    if origin.revision:
        return f"[{origin.id}](https://huggingface.co/{prefix}{origin.id})"
    source, _, name = origin.id.rpartition(":")
    kinds = {"builtin": " (shipped with hf-transfer-learning)", "local": " (not published)"}
    return f"`{name}`{kinds.get(source, '')}"


def _in_table(label: str) -> str:
    """A label that does not end the cell or the line of a Markdown table."""
    return label.replace("|", "\\|").replace("\n", " ")


def _listed(labels: list[str]) -> str:
    shown = ", ".join(f"*{label}*" for label in labels[:MOST_LABELS_SHOWN])
    return shown + (
        f" and {len(labels) - MOST_LABELS_SHOWN} more" if len(labels) > MOST_LABELS_SHOWN else ""
    )


def _flat(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters with the rates of the phases as words."""
    if "rates" not in hyperparameters:
        return hyperparameters
    flat = {key: value for key, value in hyperparameters.items() if key != "rates"}
    rate = flat["learning_rate"]
    parts = [
        f"{phase}: "
        + ", ".join(f"{stage} {rate * scale:.2g}" for stage, scale in scales.items() if scale)
        for phase, scales in hyperparameters["rates"].items()
    ]
    return {**flat, "learning_rate": "; ".join(parts)}
