"""The specification of a run: all that decides the weights, as JSON.

A run is recognised by it, and another run is refused by the differences.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_transfer.data.checks import content_digest
from hf_transfer.data.groups import GROUP
from hf_transfer.errors import UserError
from hf_transfer.job import Job
from hf_transfer.models.weights import weights_digest
from hf_transfer.strategies.plan import Plan, with_epochs

Spec = dict[str, Any]  # by the names that people read in messages

# Training flags that do not change the weights; all others are part of a specification.
# fmt: off
NEUTRAL_FLAGS = (
    "output_dir", "overwrite_output_dir", "resume", "on_nan",
    "save_minutes", "save_strategy", "save_steps",
    # The engine keeps the examples per step, however they are divided.
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "num_train_epochs",  # in the plan
    "thresholds",
    "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_first_step",
    "logging_nan_inf_filter", "logging_steps", "logging_strategy", "report_to", "run_name",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "save_on_each_node", "eval_on_start", "eval_accumulation_steps",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "hub_revision", "hub_strategy",
    "hub_always_push",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_find_unused_parameters", "local_rank", "use_cpu",
    "debug", "do_train", "do_eval", "do_predict", "torch_empty_cache_steps", "skip_memory_metrics",
)
# fmt: on


def describe_run(plan: Plan, job: Job) -> Spec:
    """The specification of a run: all that decides the weights, as JSON."""
    # Epochs follow from the number of processes, too.
    facts = asdict(with_epochs(plan, [0.0] * len(plan.phases)))
    strategy = facts.pop("strategy")
    for number, phase in enumerate(facts.pop("phases"), 1):
        facts[f"phase {number} ({phase['name']})"] = phase
    if plan.cached_views:  # views are drawn batch by batch
        facts["examples per batch of views"] = job.training.per_device_eval_batch_size
    return {
        "the strategy": strategy,
        **describe_inputs(job),
        "the epochs": job.training.num_train_epochs,
        "the plan": json.loads(json.dumps(facts)),
    }


def describe_inputs(job: Job) -> Spec:
    """The specification of a run without its plan."""
    base = job.checkpoint.provenance
    flags = job.training.to_dict()
    train = job.data.train
    inputs = {
        "the base model": f"{base.id}@{base.revision}",
        "the number of training examples": len(train),
        "the data (digest)": job.data.fingerprint,
        "the groups (digest)": content_digest(train, [GROUP]) if GROUP in train.features else None,
        **{f"--{name}": flags[name] for name in flags if name not in NEUTRAL_FLAGS},
        "--mixed_precision": getattr(job.training, "mixed_precision", None),  # the launcher's
        "--max_length": job.data.max_length,
        "the weights at the start (digest)": weights_digest(job.model),
    }
    return dict(json.loads(json.dumps(inputs, default=str)))


def require_same(before: Spec, now: Spec, folder: Path, kind: str, hint: str) -> None:
    """Raise UserError with the first differences if a folder holds a run of another spec."""
    differences = ["it was begun with another version of hf_transfer or transformers"]
    if before.keys() == now.keys():
        differences = _list_differences(before, now)
    if differences:
        message = f"{str(folder)!r} holds another {kind}: {'; '.join(differences[:3])}"
        raise UserError(message, hint)


def _list_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> list[str]:
    """The values that differ, old and new; of nested mappings, those within."""
    differences = []
    for name, new in now.items():
        old = before.get(name, new)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _list_differences(old, new, f"{path}{name}: ")
        elif old != new:
            differences.append(f"{path}{name} was {_shorten(old)}, now {_shorten(new)}")
    return differences


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
