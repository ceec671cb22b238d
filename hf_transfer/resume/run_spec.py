"""What decides what a run learns: by it a run is known again, and another one told by how it differs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.sources import Data
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.weights import weights_digest
from hf_transfer.strategies.plan import Plan, with_epochs

# Flags of training that change nothing of what is learned; all others must be as they were.
# fmt: off
FREE = (
    "output_dir", "overwrite_output_dir", "resume", "on_nan", "save_minutes", "save_strategy", "save_steps",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",  # see engine.py
    "num_train_epochs",  # in the plan
    "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_first_step",
    "logging_nan_inf_filter",
    "logging_steps", "logging_strategy", "report_to", "run_name", "project", "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id", "save_on_each_node", "eval_on_start", "eval_accumulation_steps",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "hub_revision", "hub_strategy",
    "hub_always_push",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters",
    "local_rank", "use_cpu",
    "debug", "do_train", "do_eval", "do_predict", "torch_empty_cache_steps", "skip_memory_metrics",
)
# fmt: on


def describe_run(
    plan: Plan, checkpoint: Checkpoint, data: Data, training: TrainingConfig, max_length: int | None
) -> dict[str, Any]:
    """All that decides the weights that a plan gives, as JSON, by the names that a person knows."""
    timeless = with_epochs(
        plan, [0.0] * len(plan.phases)
    )  # they follow from the number of processes, too
    asked = asdict(replace(timeless, reasons=(), evidence=(), seconds=0.0))
    of_plan = ("batch_size", "learning_rate", "weight_decay", "layer_decay", "init", "pooling")
    decided = {name: asked[name] for name in of_plan}
    phases = {
        f"phase {number} ({phase['name']})": phase
        for number, phase in enumerate(asked["phases"], 1)
    }
    frozen = {name: asked["cache"][name] for name in ("dtype", "views")}
    if plan.cache.views:  # they are drawn a batch at a time
        frozen["examples a batch of views"] = training.per_device_eval_batch_size
    return {
        "the strategy": plan.requested or plan.strategy,
        **describe_start(checkpoint, data, training, max_length),
        "the epochs": training.num_train_epochs,
        "the plan": json.loads(json.dumps({**decided, **frozen, **phases})),
    }


def describe_start(
    checkpoint: Checkpoint, data: Data, training: TrainingConfig, max_length: int | None
) -> dict[str, Any]:
    """All that decides what is learned, but the plan, as JSON."""
    base = checkpoint.provenance
    flags = {f"--{name}": value for name, value in training.to_dict().items() if name not in FREE}
    described = {
        "the base model": f"{base.id}@{base.revision}",
        "the number of training examples": len(data.train),
        "the data (digest)": data.fingerprint,
        **flags,
        "--mixed_precision": getattr(training, "mixed_precision", None),  # the launcher's
        "--max_length": max_length,
        "the weights at the start (digest)": weights_digest(checkpoint.model),
    }
    return dict(json.loads(json.dumps(described, default=str)))


def say_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], within: str = ""
) -> list[str]:
    """What is not as it was, old value and new; of what has parts, the parts."""
    said: list[str] = []
    for name in [name for name in now if name in before and before[name] != now[name]]:
        old, new = before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            said += say_differences(old, new, f"{within}{name}: ")
        else:
            said.append(f"{within}{name} was {_shorten(old)}, now {_shorten(new)}")
    return said


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
