"""When the state of a phase is kept, and what it consists of: the same step, and the same decision, in all processes.

There is no state of random generators: each step seeds them from the run's seed and its own number (trainer.py), and
the order of rows is a function of seed and epoch (order.py).
"""

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import nested_gather

from hf_transfer.errors import Stopped, UserError
from hf_transfer.resume.run_folder import SavedRun
from hf_transfer.resume.states import NotSavedError, State

log = logging.getLogger(__name__)

MOST_OF_TIME = 1 / 50  # that keeping states may take


class Stateful(Protocol):
    """What a phase remembers beside the model and the optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember it again."""
        ...


@dataclass
class StopRequest:
    """Whether a signal asked this process to stop."""

    asked: bool = False


@contextmanager
def stop_at_a_step() -> Iterator[StopRequest]:
    """Within the context SIGTERM and Ctrl-C are requests; a second Ctrl-C ends at once.

    Where it ends with Stopped, SIGTERM stays ignored: a launcher sends it to every process, and to some of them late.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _: Any) -> None:
        if number == signal.SIGINT and request.asked:
            raise KeyboardInterrupt
        if not request.asked:
            request.asked = True
            log.info("stopping after this step")

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    after = dict(before)
    try:
        yield request
    except Stopped:
        after[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in after.items():
            signal.signal(number, handler)


def _intervals(arguments: Any) -> dict[str, Any]:
    return {
        name: getattr(arguments, name) for name in ("logging_steps", "eval_steps", "save_steps")
    }


@dataclass(frozen=True)
class Agreed:
    """What all processes know of a step: whether any was asked to stop, it is time to keep the state, it is broken."""

    stop: bool = False
    due: bool = False
    broken: bool = False


def agree(stop: bool, due: bool, broken: bool, device: torch.device) -> Agreed:
    """What any process says, told to all of them."""
    if not torch.distributed.is_initialized():
        return Agreed(stop, due, broken)
    said = torch.tensor([stop, due, broken], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return Agreed(*(bool(each) for each in said.tolist()))


@dataclass
class Keeper(TrainerCallback):
    """Keeps the state of a phase, and puts the one back that the run goes on from.

    `about` says which phase it is and what those before it did; `remembered` is what has a state beside the model and
    the optimizer. Must be the last of the callbacks, after the trainer's.
    """

    saved: SavedRun
    about: Mapping[str, Any]
    stop: StopRequest
    minutes: float
    remembered: Sequence[Stateful]
    resumed: State | None = None
    trainer: Any = None

    def __post_init__(self) -> None:
        before = self.resumed.facts if self.resumed else {}
        self.began = time.perf_counter() - before.get("seconds", 0.0)
        self.put_off, self.epoch_is_over = False, False

    @property
    def has_ended(self) -> bool:
        """Whether nothing of the phase was left to train when its state was kept."""
        return bool(self.resumed and self.resumed.facts["ended"])

    @property
    def is_due(self) -> bool:
        """Whether it is time to keep the state, in the opinion of the process that writes it."""
        if not self.minutes or not PartialState().is_main_process:
            return False
        waited = time.perf_counter() - self.saved.kept_at
        return waited > max(60 * self.minutes, self.saved.stall / MOST_OF_TIME)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put back what Trainer does not."""
        if self.resumed is None:
            return
        kept = self.resumed.load("training")
        trainer = self.trainer
        trainer._tr_loss = kept["loss"].to(args.device)
        trainer._globalstep_last_logged = kept["logged_at"]
        for each, remembered in zip(self.remembered, kept["remembered"], strict=True):
            each.load_state_dict(remembered)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An epoch is under way."""
        self.epoch_is_over = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for the state to be kept; at the end of an epoch once all that belongs to it has been logged."""
        agreed = self.trainer.agreed
        wanted = control.should_save or agreed.due or agreed.stop
        ends = control.should_training_stop or state.global_step % self.trainer.batches.steps == 0
        self.put_off, control.should_save = wanted and ends, wanted and not ends

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for what was put off."""
        self.epoch_is_over = True
        control.should_save = control.should_save or self.put_off
        self.put_off = False

    def keep(self, control: Any) -> None:
        """Keep the state after a step. Raises Stopped, in all processes, if one was asked to stop."""
        stop = self.trainer.agreed.stop
        if control.should_training_stop and not self.epoch_is_over:
            self.put_off = (
                True  # a validation step has just ended the phase: what it leads to comes first
            )
            return
        self.write(ended=control.should_training_stop)
        if stop:
            self.wait()
            self.leave()

    def leave(self) -> None:
        """Raise Stopped, in all processes."""
        step, steps = self.trainer.state.global_step, self.trainer.state.max_steps
        raise Stopped(f"stopped after step {step} of {steps} (phase {self.about['name']})")

    def leave_if_asked(self) -> None:
        """Raise Stopped, in all processes, if one was asked to stop after the last step of the phase."""
        if agree(self.stop.asked, False, False, self.trainer.args.device).stop:
            self.wait()
            self.leave()

    def write(self, ended: bool = False) -> None:
        """Begin to write the state as it is; on the main process."""
        began, trainer = time.perf_counter(), self.trainer
        trainer.broadcast_buffers()
        loss = nested_gather(trainer._tr_loss, trainer.args.parallel_mode).mean()
        if PartialState().is_main_process:
            try:
                self.saved.states.wait()
            except NotSavedError as error:
                log.warning("the state could not be kept, training goes on: %s", error)
            scaler = trainer.accelerator.scaler
            training = {
                "optimizer": trainer.optimizer.state_dict(),
                "scheduler": trainer.lr_scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "loss": loss,
                "logged_at": trainer._globalstep_last_logged,
                "remembered": [each.state_dict() for each in self.remembered],
            }
            parts = {
                "weights": trainer.model.state_dict(),
                "training": training,
                # The intervals as they were asked for: Trainer compares them, and counts them out anew.
                TRAINER_STATE_NAME: json.dumps(
                    {**asdict(trainer.state), **_intervals(trainer.args)}
                ).encode(),
            }
            step = trainer.state.global_step
            seconds = time.perf_counter() - self.began
            facts = {
                **self.about,
                "asked": self.saved.asked,
                "step": step,
                "ended": ended,
                "seconds": seconds,
            }
            self.saved.states.write(f"{self.about['name']}-step-{step}", parts, facts)
        self.saved.kept_at = time.perf_counter()
        self.saved.stall = self.saved.kept_at - began

    def wait(self) -> None:
        """Return, in all processes, when the state is on the disk. Raises UserError if the disk cannot take it."""
        if PartialState().is_main_process:
            try:
                self.saved.states.wait()
            except NotSavedError as error:
                raise UserError(
                    f"the state could not be kept: {error}", "make room, and run it again"
                ) from error
        PartialState().wait_for_everyone()
