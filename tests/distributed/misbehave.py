"""Run a recipe in which the second process hangs, dies, freezes, or fetches no more, at the third step.

python misbehave.py WHAT RECIPE FLAGS
"""

import os
import runpy
import signal
import sys
import time
from typing import Any

from torch.utils.data import DataLoader

from hf_transfer.training.batches import StepLoader
from hf_transfer.training.trainer import PhaseTrainer

STEP = 3
AT_A_STEP = ("hang", "freeze", "die", "die once")
what, *sys.argv = sys.argv[1:]
train, fetch = PhaseTrainer.training_step, DataLoader.__iter__


def misbehave() -> None:
    """What happens to the second process."""
    if what == "die" or (what == "die once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what != "die once":
        time.sleep(600)


def step(self: PhaseTrainer, *args: Any, **options: Any) -> Any:
    """A step of training, or not."""
    if what.startswith("stop at") and self.state.global_step == int(what.split()[-1]):
        os.kill(os.getpid(), signal.SIGTERM)
    if what in AT_A_STEP and self.state.global_step == STEP and self.args.process_index == 1:
        misbehave()
    return train(self, *args, **options)


def batches(self: DataLoader[Any]) -> Any:
    """The batches, as far as they come."""
    for number, batch in enumerate(fetch(self)):
        if (
            what == "fetch"
            and isinstance(self, StepLoader)
            and number == STEP
            and os.environ.get("RANK") == "1"
        ):
            misbehave()
        yield batch


PhaseTrainer.training_step = step  # type: ignore[method-assign]
DataLoader.__iter__ = batches  # type: ignore[method-assign]
runpy.run_path(sys.argv[0], run_name="__main__")
