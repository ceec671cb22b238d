"""TrainingConfig: transformers' TrainingArguments with our flags on top."""

import copy
import os
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import TrainingArguments

from hf_transfer.config.bounds import require_in_bounds
from hf_transfer.config.training import TrainingFlags

# Flags that stay None where they were not given, for what comes later to derive or to leave out.
DERIVED = ("output_dir", "eval_steps", "dataloader_num_workers")


@dataclass
class TrainingConfig(TrainingFlags, TrainingArguments):
    """All flags of training; those of TrainingFlags come before TrainingArguments' own."""

    def __post_init__(self) -> None:
        # First: TrainingArguments replaces some values, and breaks on others.
        for flag in fields(self):
            if flag.init:
                require_in_bounds(flag, getattr(self, flag.name))
        # Trainer restores the best step with strict=False and loses weights (transformers issue
        # 43701), and its check requires a checkpoint at every evaluation. The best step is
        # restored by training/callbacks.py.
        given = {name: getattr(self, name) for name in ("load_best_model_at_end", *DERIVED)}
        self.load_best_model_at_end = False
        self.eval_steps = self.eval_steps or 1
        self.dataloader_num_workers = self.dataloader_num_workers or 0
        is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if is_alone:
            self.ddp_backend = None  # Accelerate would ask for processes that nobody started
        elif not torch.accelerator.is_available():
            # As `accelerate launch` says by itself. Under torchrun, processes without it would not
            # know of one another.
            self.use_cpu = True
        super().__post_init__()
        for name, value in given.items():
            setattr(self, name, value)
        if self.device.type == "cpu":
            # There is no device to pin memory for, and torch warns at every loader.
            self.dataloader_pin_memory = False

    def changed(self, **changes: Any) -> "TrainingConfig":
        """A copy with other values.

        dataclasses.replace would run TrainingArguments' own set-up again, which changes values.
        """
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other
