"""Trackers (--report_to): one run of each for all phases, whose steps go on from phase to phase."""

import copy
import logging
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from hf_transfer.config.run import CHECKPOINTS, REPORTS
from hf_transfer.config.training_arguments import TrainingConfig

ID_FILE = "tracker_id.txt"
STEP_FILE = "tracker_step.txt"  # the last step that was reported
RUN_ID, RESUME = "WANDB_RUN_ID", "WANDB_RESUME"  # from here alone wandb takes the id of a run


log = logging.getLogger(__name__)


def open_trackers(training: TrainingConfig, is_trial: bool) -> "Trackers | None":
    """The trackers of a run; None without any, or for a trial."""
    if not training.report_to or is_trial:
        return None
    if training.output_dir is None:
        names = ", ".join(training.report_to)
        log.warning("a run without an output folder does not report to %s", names)
        return None
    return Trackers(training)


class Trackers(TrainerCallback):
    """Sends what every phase logs to transformers' own callbacks, made once.

    Trainer would make others in each phase: a new run of the tracker, from step 0. `steps_before`
    is the number of steps of the phases that are done. The phases run within this context.
    """

    def __init__(self, training: TrainingConfig) -> None:
        folder = Path(str(training.output_dir)) / CHECKPOINTS / REPORTS
        if training.process_index == 0:
            folder.mkdir(parents=True, exist_ok=True)
        self.training = training.changed(output_dir=str(folder))
        self.steps_before = 0
        self.has_begun = False
        self.names_wandb_run = RUN_ID not in os.environ
        self.last: tuple[Any, ...] = ()  # state, control and other arguments of the last phase
        self._name_run(folder)
        self.step_file = folder / STEP_FILE
        self.reported = _read_step(self.step_file)
        self.callbacks = [
            kind() for kind in get_reporting_integration_callbacks(training.report_to)
        ]
        for callback in self.callbacks:
            if hasattr(callback, "logging_dir"):  # TensorBoard's, by default one with a date
                callback.logging_dir = callback.logging_dir or str(folder)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Begin the run of each tracker, in the first phase that is trained."""
        if not self.has_begun:
            self._send("on_train_begin", state, control, others)
        self.has_begun = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Log at the step of the whole run, unless it was reported before the run was stopped."""
        step = state.global_step + self.steps_before
        if step >= self.reported:
            self._send("on_log", state, control, others)
        if step > self.reported:
            self.reported = step
            if state.is_world_process_zero:
                self.step_file.write_text(str(step))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Remember the last state: the run goes on in the next phase."""
        self.last = (copy.copy(state), control, others)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the run of each tracker: the next one in this process is another."""
        if self.last and not error:
            self._send("on_train_end", *self.last)
        if self.names_wandb_run:
            os.environ.pop(RUN_ID, None)
            os.environ.pop(RESUME, None)
        wandb = sys.modules.get("wandb")
        run = getattr(wandb, "run", None)
        if wandb and run and run.id == self.run_id:
            wandb.finish(exit_code=int(error is not None))  # its callback leaves the run open

    def _send(
        self, event: str, state: TrainerState, control: TrainerControl, others: dict[str, Any]
    ) -> None:
        shifted = copy.copy(state)
        shifted.global_step = state.global_step + self.steps_before
        for callback in self.callbacks:
            getattr(callback, event)(self.training, shifted, control, **others)

    def _name_run(self, folder: Path) -> None:
        """Give the run a name and an id that a resumed run has, too: it continues it."""
        path = folder / ID_FILE
        if not path.is_file() and self.training.process_index == 0:
            path.write_text(uuid.uuid4().hex[:16])
        self.run_id = path.read_text() if path.is_file() else None
        output = Path(str(self.training.output_dir)).parents[1].resolve().name
        self.training.run_name = self.training.run_name or f"{output}-{self.run_id}"
        if self.run_id and self.names_wandb_run:
            os.environ[RUN_ID] = self.run_id
            os.environ[RESUME] = "allow"


def _read_step(path: Path) -> int:
    text = path.read_text() if path.is_file() else ""
    return int(text) if text.isdigit() else 0
