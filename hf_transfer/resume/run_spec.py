"""What decides what a run learns: by it a run is known again, and another one told by how it differs."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hf_transfer.job import Job
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


def describe_run(plan: Plan, job: Job) -> dict[str, Any]:
    """All that decides the weights that a plan gives, as JSON, by the names that a person knows."""
    # Epochs follow from the number of processes, too.
    facts = asdict(with_epochs(plan, [0.0] * len(plan.phases)))
    phases = facts.pop("phases")
    strategy = facts.pop("strategy")
    for number, phase in enumerate(phases, 1):
        facts[f"phase {number} ({phase['name']})"] = phase
    if plan.cached_views:  # views are drawn batch by batch
        facts["examples per batch of views"] = job.training.per_device_eval_batch_size
    return {
        "the strategy": strategy,
        **describe_start(job),
        "the epochs": job.training.num_train_epochs,
        "the plan": json.loads(json.dumps(facts)),
    }


def describe_start(job: Job) -> dict[str, Any]:
    """All that decides what is learned, but the plan, as JSON."""
    base = job.checkpoint.provenance
    training = job.training
    flags = {f"--{name}": value for name, value in training.to_dict().items() if name not in FREE}
    described = {
        "the base model": f"{base.id}@{base.revision}",
        "the number of training examples": len(job.data.train),
        "the data (digest)": job.data.fingerprint,
        **flags,
        "--mixed_precision": getattr(training, "mixed_precision", None),  # the launcher's
        "--max_length": job.data.max_length,
        "the weights at the start (digest)": weights_digest(job.model),
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
