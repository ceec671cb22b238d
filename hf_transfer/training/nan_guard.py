"""A step whose loss or gradient is not finite never reaches the weights."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hf_transfer.errors import UserError

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10  # steps that are skipped: then it is not the examples
NAMED = 8  # examples in a message


@dataclass
class Guard:
    """Sees the losses of a step, and undoes what the step did before the optimizer would act on it.

    `examples` gives the ids of all rows of a step by its number. `skipped` is for the record.
    """

    examples: Callable[[int], list[str]]
    rolls_back: bool
    skipped: list[dict[str, Any]] = field(default_factory=list)
    in_a_row: int = field(default=0, init=False)

    def begin(self, model: torch.nn.Module, summed: torch.Tensor) -> None:
        """Remember what a forward pass changes: the running statistics of BatchNorm; and the loss so far."""
        self.finite = torch.ones((), dtype=torch.bool, device=summed.device)
        self.summed = summed.clone()
        # All of them: after an evaluation it is the forward pass itself that sets them to learn.
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.buffers = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

    def see(self, loss: torch.Tensor) -> None:
        """Take note of the loss of a batch."""
        self.finite &= loss.isfinite().all()

    def is_broken(self, norm: Any, scaled: bool) -> bool:
        """Whether the step must not be made, by its losses and the norm of its gradient.

        Scaled losses (fp16) overflow now and then, and their scaler skips such steps by itself.
        """
        finite = (
            self.finite
            if scaled
            else self.finite & torch.as_tensor(norm, device=self.finite.device).isfinite()
        )
        return not bool(finite)

    def undo(self) -> torch.Tensor:
        """The loss so far as it was before the step, whose trace in the model is gone."""
        for buffer, before in self.buffers:
            buffer.copy_(before)
        return self.summed

    def note(self, step: int, is_skipped: bool) -> None:
        """Count a step, by the number of those before it. Raises UserError where skipping does not help."""
        self.in_a_row = self.in_a_row + 1 if is_skipped else 0
        if not is_skipped:
            return
        self.skipped.append({"step": step, "ids": self.examples(step)})
        log.warning("step %d is skipped, not finite: %s", step + 1, self.name_examples(step))
        if self.in_a_row >= MOST_IN_A_ROW:
            raise UserError(
                f"{MOST_IN_A_ROW} steps in a row are not finite", "give a smaller --learning_rate"
            )

    def refusal(self, step: int, steps: int, kept: str) -> UserError:
        """The error that ends a run at a step that is not finite."""
        return UserError(
            f"the loss or its gradient is not finite at step {step + 1} of {steps} ({self.name_examples(step)}){kept}",
            "look at these examples, give a smaller --learning_rate, or skip such steps with --on_nan rollback",
        )

    def name_examples(self, step: int) -> str:
        """The ids of a step's examples, the first of them where they are many."""
        ids = self.examples(step)
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        return f"examples {', '.join(ids[:NAMED])}{more}"

    def state_dict(self) -> dict[str, Any]:
        """What was skipped so far."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember it again."""
        self.skipped, self.in_a_row = list(state["skipped"]), state["in_a_row"]
