"""Run a recipe in which one number of the second process's gradient is NaN at the third step.

python nan_in_one.py before|after RECIPE FLAGS: before the processes have put their gradients together, or after that.
"""

import os
import runpy
import sys
from typing import Any

from hf_transfer.training.trainer import PhaseTrainer

STEP = 2
when, *sys.argv = sys.argv[1:]
train = PhaseTrainer.training_step


def training_step(self: PhaseTrainer, *args: Any, **options: Any) -> Any:
    """A step whose gradient is broken, or not."""
    if self.state.global_step != STEP or os.environ["RANK"] != "1":
        return train(self, *args, **options)
    head = list(self.model.parameters())[-1]
    hook = (
        head.register_hook(lambda gradient: gradient * float("nan")) if when == "before" else None
    )
    loss = train(self, *args, **options)
    if hook:
        hook.remove()
    else:
        head.grad[0] = float("nan")
    return loss


PhaseTrainer.training_step = training_step  # type: ignore[method-assign]
runpy.run_path(sys.argv[0], run_name="__main__")
