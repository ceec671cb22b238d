"""What Trainer would refuse late: optimizer, schedule and network are tried before a run begins."""

from typing import Any

import torch
from transformers import Trainer, get_scheduler

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import UserError, one_line
from hf_transfer.training.packages import optimizer_package

# How transformers and torch refuse arguments of an optimizer, a schedule or a network.
REFUSALS = (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
LOW_RANK = ("galore", "apollo")  # optimizers of some modules only


def require_optimizer(training: TrainingConfig) -> None:
    """Raise UserError for arguments that the optimizer, or its schedule, does not take.

    Both are made, for one weight; of optimizers that need a package the schedule alone.
    """
    name = str(training.optim.value)
    if training.optim_target_modules and not any(part in name for part in LOW_RANK):
        raise UserError(
            f"--optim_target_modules does not belong to --optim {name}",
            f"leave it out; it is for {' and '.join(LOW_RANK)}",
        )
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer: torch.optim.Optimizer = torch.optim.SGD([weight], lr=1e-3)
    if optimizer_package(name) is None:
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(
                training.changed(learning_rate=1e-3, weight_decay=0.0)
            )
            optimizer = kind([weight], **options)
        except REFUSALS as error:
            raise UserError(
                f"--optim {name} does not take --optim_args {training.optim_args}: "
                f"{one_line(error)}",
                "give name=value, and a comma between two; torch's documentation lists the names",
            ) from error
    _require_schedule(training, optimizer)
    _require_compiler(training)


def _require_schedule(training: TrainingConfig, optimizer: torch.optim.Optimizer) -> None:
    name = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type))
    options = training.lr_scheduler_kwargs or {}
    try:
        get_scheduler(name, optimizer, 1, 10, scheduler_specific_kwargs=options)
    except REFUSALS as error:
        given = f"--lr_scheduler_kwargs {options}" if options else "no --lr_scheduler_kwargs"
        raise UserError(
            f"--lr_scheduler_type {name} with {given}: {one_line(error)}",
            "see the schedules in transformers' documentation of optimization",
        ) from error


def _require_compiler(training: TrainingConfig) -> None:
    if training.torch_compile:
        backend, mode = training.torch_compile_backend, training.torch_compile_mode
        try:
            torch.compile(torch.nn.Identity(), backend=backend or "inductor", mode=mode)
        except REFUSALS as error:
            raise UserError(
                f"--torch_compile with backend {backend} and mode {mode}: {one_line(error)}",
                "leave out --torch_compile_backend and --torch_compile_mode",
            ) from error


def require_supported(model: Any, training: TrainingConfig) -> None:
    """Raise UserError for flags that the network does not support."""
    name = type(model).__name__
    if training.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UserError(
            f"--gradient_checkpointing: {name} does not support it",
            "leave it out; a smaller --per_device_train_batch_size saves memory, too",
        )
    if training.neftune_noise_alpha:
        try:
            embeddings = model.get_input_embeddings()
        except REFUSALS:
            embeddings = None
        if not isinstance(embeddings, torch.nn.Embedding):
            raise UserError(
                f"--neftune_noise_alpha: {name} has no embeddings of tokens",
                "leave it out; the noise is for embeddings of texts",
            )
