"""Bounds of the numbers among the flags. Loads no library."""

import math
import operator
from collections.abc import Callable
from dataclasses import Field
from typing import Any

from hf_transfer.errors import UserError

# Bounds of flags that are TrainingArguments' own, as those of ours stand in their declarations.
TRAINER_BOUNDS: dict[str, dict[str, float]] = {
    "adam_beta1": {"minimum": 0, "below": 1},
    "adam_beta2": {"minimum": 0, "below": 1},
    "adam_epsilon": {"minimum": 0},
    "data_seed": {"minimum": 0, "maximum": 2**32 - 1},
    "dataloader_prefetch_factor": {"minimum": 1},
    "ddp_bucket_cap_mb": {"minimum": 1},
    "ddp_timeout": {"above": 0},
    "eval_accumulation_steps": {"minimum": 1},
    "eval_delay": {"minimum": 0},
    "gradient_accumulation_steps": {"minimum": 1},
    "label_smoothing_factor": {"minimum": 0, "below": 1},
    "logging_steps": {"above": 0},
    "max_grad_norm": {"minimum": 0},
    "max_steps": {"minimum": 1},
    "neftune_noise_alpha": {"minimum": 0},
    "save_steps": {"above": 0},
    "seed": {"minimum": 0, "maximum": 2**32 - 1},
    "torch_empty_cache_steps": {"minimum": 1},
}

# Bound in a flag's metadata: whether a value is inside (NaN never is), what it is if not, the fix.
BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str, str]] = {
    "minimum": (operator.ge, "small", "{} or more"),
    "above": (operator.gt, "small", "more than {}"),
    "maximum": (operator.le, "large", "{} at most"),
    "below": (operator.lt, "large", "less than {}"),
}


def require_in_bounds(flag: Field[Any], value: Any) -> None:
    """Raise UserError if the value of a flag is a number that no run could use.

    The default is always inside: -1 for --max_steps says that there is no maximum.
    """
    if value is None or value == flag.default:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f"--{flag.name} {value} is no finite number", "give a number, or leave it out"
        )
    bounds = {**flag.metadata, **TRAINER_BOUNDS.get(flag.name, {})}
    for bound, (is_inside, size, advice) in BOUNDS.items():
        limit = bounds.get(bound)
        if limit is not None and not is_inside(value, limit):
            raise UserError(f"--{flag.name} {value} is too {size}", f"give {advice.format(limit)}")
