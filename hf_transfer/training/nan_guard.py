"""A step whose loss or gradient is not finite never changes the weights."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hf_transfer.errors import UserError

SMALLER_RATE = "give a smaller --learning_rate, and --overwrite_output_dir to start over"

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10  # steps; after that many, the examples are not the cause
MAX_NAMED = 8  # examples in a message


def require_finite(model: torch.nn.Module) -> None:
    """Raise UserError if a trained parameter is not finite: no later step has noticed the last."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise UserError(f"the weights {name} are not finite after the last step", SMALLER_RATE)


@dataclass
class NanGuard:
    """Checks the losses and the gradient of a step, and undoes the step's traces in the model.

    `example_ids` returns the ids of all rows of a step by the number of the step. With `rolls_back`
    such steps are skipped; without, they end the run. `skipped` is for the record.
    """

    example_ids: Callable[[int], list[str]]
    rolls_back: bool
    skipped: list[dict[str, Any]] = field(default_factory=list)
    in_a_row: int = field(default=0, init=False)

    def begin_step(self, model: torch.nn.Module, loss_sum: torch.Tensor) -> None:
        """Copy what a forward pass changes: BatchNorm's running statistics, and the loss so far."""
        self.finite = torch.ones((), dtype=torch.bool, device=loss_sum.device)
        self.loss_sum = loss_sum.clone()
        # All of them: after an evaluation, the forward pass itself sets them to training mode.
        self.buffers = []
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                self.buffers += [(each, each.clone()) for each in module.buffers()]

    def record_loss(self, loss: torch.Tensor) -> None:
        """Check the loss of a batch, without waiting for the device."""
        self.finite &= loss.isfinite().all()

    def is_broken(self, grad_norm: float | torch.Tensor, scaled: bool) -> bool:
        """Whether a loss of the step or the norm of its gradient is not finite.

        Gradients of scaled losses (fp16) overflow now and then, and their scaler skips such steps.
        """
        if scaled:
            return not self.finite
        return not self.finite & torch.as_tensor(grad_norm, device=self.finite.device).isfinite()

    def roll_back(self) -> torch.Tensor:
        """Restore the BatchNorm statistics, and return the loss so far, from before the step."""
        for buffer, before in self.buffers:
            buffer.copy_(before)
        return self.loss_sum

    def count_step(self, step: int, is_skipped: bool) -> None:
        """Count a step by the number of steps before it.

        Raises UserError after MAX_SKIPPED_IN_A_ROW skipped steps.
        """
        self.in_a_row = self.in_a_row + 1 if is_skipped else 0
        if not is_skipped:
            return
        self.skipped.append({"step": step, "ids": self.example_ids(step)})
        log.warning("step %d is skipped, not finite: %s", step + 1, self.describe_examples(step))
        if self.in_a_row >= MAX_SKIPPED_IN_A_ROW:
            message = f"{MAX_SKIPPED_IN_A_ROW} steps in a row are not finite"
            raise UserError(message, SMALLER_RATE)

    def error(self, step: int, max_steps: int, saved: str) -> UserError:
        """The error that ends a run at a step; `saved` names the training state that is saved."""
        return UserError(
            f"the loss or its gradient is not finite at step {step + 1} of {max_steps} "
            f"({self.describe_examples(step)}){saved}",
            f"look at these examples; {SMALLER_RATE}; or skip such steps with --on_nan rollback",
        )

    def describe_examples(self, step: int) -> str:
        """The ids of a step's examples, at most MAX_NAMED of them."""
        ids = self.example_ids(step)
        more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
        return f"examples {', '.join(ids[:MAX_NAMED])}{more}"

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.skipped = list(state["skipped"])
        self.in_a_row = state["in_a_row"]
