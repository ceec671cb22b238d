"""The model card: a pure function of the record, complete or an error."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from hf_transfer.data.tag_scheme import tag_scheme
from hf_transfer.evaluation.metrics import Metric, find_metric
from hf_transfer.package_files import package_folder
from hf_transfer.record import BaseModelFacts, ClassMetrics, DatasetFacts, ProblemType, RunRecord
from hf_transfer.tasks import MODALITIES, find_task

BASELINE_NAMES: dict[ProblemType, dict[str, str]] = {
    "single_label_classification": {"majority": "majority class", "raw_inputs": "raw inputs"},
    "multi_label_classification": {"majority": "label shares", "raw_inputs": "raw inputs"},
    "regression": {"majority": "mean", "raw_inputs": "raw inputs"},
}
MAX_LABELS_SHOWN = 60
REQUIRED = ("license", "library_name", "pipeline_tag", "tags", "metrics", "model-index")


def render_card(record: RunRecord) -> ModelCard:
    """The card of a run, metadata and text.

    Raises ValueError if it would be incomplete: a key of the metadata missing, a gap in the text,
    or a path of the machine that made it.
    """
    template = load_template(f"{record.task.replace('-', '_')}.md", autoescape=False)
    body = template.render(template_facts(record))
    card = ModelCard(f"---\n{card_metadata(record).to_yaml()}\n---\n\n{body.strip()}\n")
    require_complete(str(card))
    return card


def card_metadata(record: RunRecord) -> ModelCardData:
    """The YAML block: licence, base model and dataset only where on the Hub, a model-index."""
    base = record.base_model
    dataset = record.dataset
    card = record.card
    results = []
    for name, estimate in record.metrics.items():
        metric = find_metric(name, record.problem_type)
        result = EvalResult(
            task_type=record.task,
            dataset_type=dataset.id,
            dataset_name=dataset.id.split("/")[-1].split(":")[-1],
            dataset_split=record.evaluation.split,
            dataset_revision=dataset.revision,
            metric_type=metric.hub_id,
            metric_name=metric.title,
            metric_value=round(estimate.value, 4),
        )
        results.append(result)
    is_transferred = record.strategy.used != "scratch"
    adapter = record.model.adapter
    linked: dict[str, Any] = {}
    if is_transferred and base.revision:
        relation = "adapter" if adapter else "finetune"
        linked = {"base_model": base.id, "base_model_relation": relation}
    return ModelCardData(
        model_name=card.name.split("/")[-1],
        license=card.license or (is_transferred and base.license) or "unknown",
        library_name="peft" if adapter else "transformers",
        pipeline_tag=record.task,
        language=card.language,
        datasets=[dataset.id] if dataset.revision else None,
        metrics=sorted({result.metric_type for result in results}),
        tags=["transfer-learning", "hf-transfer-learning", f"strategy:{record.strategy.used}"],
        eval_results=results,
        **linked,
    )


def require_complete(text: str) -> None:
    """Raise ValueError if a card lacks metadata that the Hub reads, has a gap or a local path."""
    metadata = ModelCard(text).data.to_dict()
    missing = [key for key in REQUIRED if not metadata.get(key)]
    if missing:
        raise ValueError(f"the card lacks {', '.join(missing)}")
    refused = ["more information needed"]
    for folder in map(str, (Path.cwd(), Path.home(), package_folder("model_cards"))):
        refused += [re.escape(folder)] if len(folder) > 5 else []
    found = re.search("|".join(refused), text, re.IGNORECASE)
    if found:
        raise ValueError(f"the card holds {found[0]!r}")


def load_template(name: str, autoescape: bool) -> Template:
    """A template of model_cards/; an undefined variable in it is an error when it is rendered."""
    environment = Environment(
        loader=FileSystemLoader(package_folder("model_cards")),
        autoescape=autoescape,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def template_facts(record: RunRecord) -> dict[str, Any]:
    """The variables of the templates of card and report."""
    task = find_task(record.task)
    dataset = record.dataset
    per_class = [replace(row, label=_in_table(row.label)) for row in record.evaluation.per_class]
    present = [row for row in per_class if row.n]
    labels = [*map(_in_table, dataset.labels)]
    left_out = len(labels) - MAX_LABELS_SHOWN
    more = f" and {left_out} more" if left_out > 0 else ""
    return {
        "r": record,
        "name": record.card.name,
        "location": record.card.location or record.card.name,
        "task": task,
        "kind": task.noun,
        "raw_features": MODALITIES[task.modality].plain_features,
        "words_of": "tags" if task.labels_words else record.problem_type,
        "marks_entities": tag_scheme(dataset.labels) != "plain",
        "curve": any(phase.history for phase in record.phases),
        "labels": labels,
        "shown_labels": ", ".join(map("*{}*".format, labels[:MAX_LABELS_SHOWN])) + more,
        "metrics": record.metrics,
        "baselines": record.baselines,
        "known": {name: find_metric(name, record.problem_type) for name in record.metrics},
        "baseline_names": BASELINE_NAMES[record.problem_type],
        "show": show_value,
        "at_half": _at_half(record),
        "level": next(iter(record.metrics.values())).level,
        "per_class": per_class,
        "weakest": _weakest(present),
        "base_link": _link(record.base_model, ""),
        "dataset_link": _link(dataset, "datasets/"),
        "left_out": Counter(row.reason.partition(":")[0] for row in dataset.dropped),
        "image_kinds": _counted(dataset.image_kinds or {}),
        "hyperparameters": _with_shown_rates(record.model.hyperparameters),
        "citation_key": re.sub(r"\W+", "_", record.card.name.split("/")[-1]),
    }


def _at_half(record: RunRecord) -> str:
    """The metrics as they are with 0.5 for all labels, where thresholds were tuned."""
    thresholds = record.evaluation.thresholds
    shown = []
    for name, estimate in (thresholds.plain if thresholds else {}).items():
        metric = find_metric(name, record.problem_type)
        shown.append(f"{metric.title} {show_value(metric, estimate.value)}")
    return ", ".join(shown)


def show_value(metric: Metric, value: float) -> str:
    """A value of a metric as text, a share in per cent."""
    return f"{100 * value:.1f} %" if metric.is_share else show_plain(value)


def show_plain(value: float) -> str:
    """A value that is no share: three decimals, none from 1,000 on."""
    # + 0.0: no minus before 0.000
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 3) + 0.0:.3f}"


def _counted(kinds: dict[str, int]) -> str:
    """`80 (16-bit grey: 60, transparent: 20)`."""
    shown = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.items())
    return f"{sum(kinds.values()):,} ({shown})"


def _weakest(rows: list[ClassMetrics]) -> ClassMetrics | None:
    """The class with the lowest F1; None where several have it."""
    ordered = sorted(rows, key=lambda row: row.f1.value)
    is_alone = len(ordered) > 1 and ordered[0].f1.value < ordered[1].f1.value
    return ordered[0] if is_alone else None


def _link(origin: BaseModelFacts | DatasetFacts, prefix: str) -> str:
    if origin.revision:
        return f"[{origin.id}](https://huggingface.co/{prefix}{origin.id})"
    source, _, name = origin.id.rpartition(":")
    kinds = {"builtin": " (shipped with hf-transfer-learning)", "local": " (not published)"}
    return f"`{name}`{kinds.get(source, '')}"


def _in_table(label: str) -> str:
    """A label that ends neither the cell nor the line of a Markdown table."""
    return label.replace("|", "\\|").replace("\n", " ")


def _with_shown_rates(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    flat = dict(hyperparameters)
    shown = []
    for phase, scales in flat.pop("rates", {}).items():
        rates = {stage: flat["learning_rate"] * scale for stage, scale in scales.items() if scale}
        shown.append(f"{phase}: " + ", ".join(map("{} {:.2g}".format, rates, rates.values())))
    return {**flat, "learning_rate": "; ".join(shown)} if shown else flat
