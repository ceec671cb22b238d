"""The specification of a run: all that decides the weights, as JSON.

A run is recognised by it, and another run is refused by the differences.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from hf_transfer.config import TrainingConfig
from hf_transfer.data.sources import Data
from hf_transfer.errors import UserError
from hf_transfer.models.checkpoint import Checkpoint
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


def describe_run(
    plan: Plan, checkpoint: Checkpoint, data: Data, training: TrainingConfig, max_length: int | None
) -> Spec:
    """The specification of a run."""
    # The epochs of the phases follow from the number of processes, too.
    timeless = with_epochs(plan, [0.0] * len(plan.phases))
    fields = asdict(replace(timeless, reasons=(), evidence=(), seconds=0.0))
    names = ("batch_size", "learning_rate", "weight_decay", "layer_decay", "init", "pooling")
    decisive = {name: fields[name] for name in names}
    decisive |= {name: fields["cache"][name] for name in ("dtype", "views")}
    if plan.cache.views:  # they are drawn batch by batch
        decisive["examples per batch of views"] = training.per_device_eval_batch_size
    for number, phase in enumerate(fields["phases"], 1):
        decisive[f"phase {number} ({phase['name']})"] = phase
    return {
        "the strategy": plan.requested or plan.strategy,
        **describe_inputs(checkpoint, data, training, max_length),
        "the epochs": training.num_train_epochs,
        "the plan": json.loads(json.dumps(decisive)),
    }


def describe_inputs(
    checkpoint: Checkpoint, data: Data, training: TrainingConfig, max_length: int | None
) -> Spec:
    """The specification of a run without its plan."""
    base = checkpoint.provenance
    flags = training.to_dict()
    inputs = {
        "the base model": f"{base.id}@{base.revision}",
        "the number of training examples": len(data.train),
        "the data (digest)": data.fingerprint,
        **{f"--{name}": flags[name] for name in flags if name not in NEUTRAL_FLAGS},
        "--mixed_precision": getattr(training, "mixed_precision", None),  # the launcher's
        "--max_length": max_length,
        "the weights at the start (digest)": weights_digest(checkpoint.model),
    }
    return dict(json.loads(json.dumps(inputs, default=str)))


def weights_digest(model: torch.nn.Module) -> str:
    """A digest of every parameter and buffer of a model, by name."""
    digest = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def require_same(before: Spec, now: Spec, folder: Path, kind: str, hint: str) -> None:
    """Raise UserError with the first differences if a folder holds a run of another spec."""
    if before.keys() == now.keys():
        differences = _list_differences(before, now)
    else:
        differences = ["it was begun with another version of hf_transfer or transformers"]
    if differences:
        message = f"{str(folder)!r} holds another {kind}: {'; '.join(differences[:3])}"
        raise UserError(message, hint)


def _list_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> list[str]:
    """The values that differ, old and new; of nested mappings, those within."""
    differences: list[str] = []
    for name in [name for name in now if name in before and before[name] != now[name]]:
        old = before[name]
        new = now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _list_differences(old, new, f"{path}{name}: ")
        else:
            differences.append(f"{path}{name} was {_shorten(old)}, now {_shorten(new)}")
    return differences


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
