"""Flags: how the result is measured."""

from dataclasses import dataclass

from hf_transfer.config.flag import flag

BASELINE_NAMES = ("majority", "raw_inputs")


@dataclass(frozen=True)
class EvaluationConfig:
    """Metrics, baselines and the level of the intervals."""

    _argument_group_name = "evaluation"

    metrics: list[str] | None = flag(
        None,
        "Metrics on the test split. Single label: accuracy, f1_macro, log_loss (default), "
        "balanced_accuracy, f1_weighted, or a metric of the evaluate library. Multi-label: "
        "f1_micro, f1_macro, exact_match, log_loss (default). Regression: rmse, mae, r2 "
        "(default), pearson, spearman. Words with tags: entity_f1 where tags mark entities, "
        "accuracy, f1_macro (default), entity_precision, entity_recall, log_loss.",
    )
    baselines: list[str] = flag(
        default_factory=lambda: ["majority"],
        help="Baselines to compare with. majority: the most frequent class (regression: the "
        "mean); raw_inputs: a linear model on pixels or words.",
    )
    confidence: float = flag(0.95, "Confidence level of the intervals, between 0 and 1.", above=0)
