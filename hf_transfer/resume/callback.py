"""When the training state of a phase is saved, and what it holds.

All processes save after the same step, by the same decision. There is no state of random
generators: each step seeds them from the run's seed and its own number (training/trainer.py), and
the order of rows is a function of seed and epoch (training/batches.py).
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
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import nested_gather

from hf_transfer.errors import Stopped, UserError
from hf_transfer.resume.run_folder import SavedRun
from hf_transfer.resume.states import State
from hf_transfer.sealed import NotWrittenError

log = logging.getLogger(__name__)

MAX_SHARE_OF_TIME = 1 / 50  # that saving by --save_minutes may take


class Stateful(Protocol):
    """A part of a phase that has a state, beside the model and the optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Its state so far, for the training state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore its state from a training state."""


@dataclass
class StopSignal:
    """Whether this process has received a signal to stop."""

    received: bool = False


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Within the context SIGTERM and Ctrl-C are only noted; a second Ctrl-C interrupts at once.

    Where it ends with Stopped, SIGTERM stays ignored: a launcher sends it to every process, and to
    some of them late. In a thread nothing is caught.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGINT and stop.received:
            raise KeyboardInterrupt
        if not stop.received:
            stop.received = True
            log.info("stopping after this step")

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    except Stopped:
        before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class StepFlags:
    """Of a step: whether to stop after it, to save the training state, and whether it is broken."""

    stop: bool = False
    save: bool = False
    broken: bool = False


def reduce_flags(stop: bool, save: bool, broken: bool, device: torch.device) -> StepFlags:
    """The flags that are set in any process, the same in all of them."""
    if not torch.distributed.is_initialized():
        return StepFlags(stop, save, broken)
    flags = torch.tensor([stop, save, broken], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return StepFlags(*map(bool, flags.tolist()))


@dataclass
class TrainingStateCallback(TrainerCallback):
    """Saves the training state of a phase, and restores the one from which the run resumes.

    Must be the last of the callbacks, after the trainer's.

    Attributes:
        phase_facts: Which phase it is, and the facts of those before it.
        stateful: Everything that has a state beside the model and the optimizer.
    """

    saved: SavedRun
    phase_facts: Mapping[str, Any]
    stop: StopSignal
    save_minutes: float
    stateful: Sequence[Stateful]
    resumed: State | None = None
    trainer: Any = None

    def __post_init__(self) -> None:
        before = self.resumed.facts if self.resumed else {}
        self.began = time.perf_counter() - before.get("seconds", 0.0)
        self.is_postponed = False
        self.epoch_has_ended = False

    @property
    def phase_has_ended(self) -> bool:
        """Whether nothing of the phase was left to train when its state was saved."""
        return bool(self.resumed and self.resumed.facts["ended"])

    @property
    def is_due(self) -> bool:
        """Whether --save_minutes have passed; true in the main process only, which saves."""
        if not self.save_minutes or not PartialState().is_main_process:
            return False
        waited = time.perf_counter() - self.saved.saved_at
        return waited > max(60 * self.save_minutes, self.saved.save_seconds / MAX_SHARE_OF_TIME)

    def on_train_begin(self, args: TrainingArguments, *_: object, **__: object) -> None:
        """Restore what Trainer does not."""
        if self.resumed:
            training = self.resumed.load("training")
            self.trainer._tr_loss = training["loss"].to(args.device)
            self.trainer._globalstep_last_logged = training["logged_at"]
            for each, state in zip(self.stateful, training["stateful"], strict=True):
                each.load_state_dict(state)

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.epoch_has_ended = False

    def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
        """Request a save; at the end of an epoch only once all that belongs to it is logged."""
        flags = self.trainer.agreed
        wanted = control.should_save or flags.save or flags.stop
        ends = control.should_training_stop or state.global_step % self.trainer.batches.steps == 0
        self.is_postponed = wanted and ends
        control.should_save = wanted and not ends

    def on_epoch_end(self, args: object, state: object, control: Any, **_: object) -> None:
        self.epoch_has_ended = True
        control.should_save = control.should_save or self.is_postponed
        self.is_postponed = False

    def save(self, control: Any) -> None:
        """Save the training state after a step.

        Raises Stopped, in all processes, if any of them has received a signal.
        """
        if control.should_training_stop and not self.epoch_has_ended:
            # A validation step has just ended the phase: what follows from it comes first.
            self.is_postponed = True
            return
        stop = self.trainer.agreed.stop
        self.write(ended=control.should_training_stop)
        if stop:
            self._stop()

    def stop_if_signaled(self) -> None:
        """Raise Stopped, in all processes, if a signal came after the last step of the phase."""
        if reduce_flags(self.stop.received, False, False, self.trainer.args.device).stop:
            self._stop()

    def _stop(self) -> None:
        """Raise Stopped, in all processes, once the state is on the disk."""
        self.wait()
        state = self.trainer.state
        place = f"step {state.global_step} of {state.max_steps} (phase {self.phase_facts['name']})"
        raise Stopped(f"stopped after {place}")

    def write(self, ended: bool = False) -> None:
        """Begin to write the training state as it is; only the main process writes."""
        began = time.perf_counter()
        trainer = self.trainer
        trainer.broadcast_buffers()
        loss = nested_gather(trainer._tr_loss, trainer.args.parallel_mode).mean()
        if PartialState().is_main_process:
            self.saved.wait()
            step = trainer.state.global_step
            seconds = time.perf_counter() - self.began
            facts = {"spec": self.saved.spec, "step": step, "ended": ended, "seconds": seconds}
            name = f"{self.phase_facts['name']}-step-{step}"
            self.saved.states.write(name, self._parts(loss), {**self.phase_facts, **facts})
        self.saved.saved_at = time.perf_counter()
        self.saved.save_seconds = self.saved.saved_at - began

    def _parts(self, loss: torch.Tensor) -> dict[str, Any]:
        """The weights, all else that training needs, and Trainer's own state as a file."""
        trainer = self.trainer
        scaler = trainer.accelerator.scaler
        state = asdict(trainer.state)
        # The intervals as given in the arguments: Trainer compares them, and computes them anew.
        for name in ("logging_steps", "eval_steps", "save_steps"):
            state[name] = getattr(trainer.args, name)
        return {
            "weights": trainer.model.state_dict(),
            "training": {
                "optimizer": trainer.optimizer.state_dict(),
                "scheduler": trainer.lr_scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "loss": loss,
                "logged_at": trainer._globalstep_last_logged,
                "stateful": [each.state_dict() for each in self.stateful],
            },
            TRAINER_STATE_NAME: json.dumps(state).encode(),
        }

    def wait(self) -> None:
        """Return, in all processes, when the state is on the disk.

        Raises UserError if the disk cannot take it.
        """
        if PartialState().is_main_process:
            try:
                self.saved.states.wait()
            except NotWrittenError as error:
                raise UserError(
                    f"the training state could not be saved: {error}",
                    "free some space, then run the same command again",
                ) from error
        PartialState().wait_for_everyone()
