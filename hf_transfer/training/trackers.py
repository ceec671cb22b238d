"""Trackers (--report_to): one run of each for all phases, whose steps go on from phase to phase."""

import copy
import os
import uuid
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from hf_transfer.config.run import CHECKPOINTS, REPORTS
from hf_transfer.config.training_arguments import TrainingConfig

ID_FILE = "tracker_id.txt"


class Trackers(TrainerCallback):
    """Sends what every phase logs to transformers' own callbacks, made once.

    Trainer would make others in each phase: a new run of the tracker, from step 0. `steps_before`
    is the number of steps of the phases that are done.
    """

    def __init__(self, training: TrainingConfig) -> None:
        folder = Path(str(training.output_dir)) / CHECKPOINTS / REPORTS
        folder.mkdir(parents=True, exist_ok=True)
        self.training = training.changed(output_dir=str(folder))
        self.steps_before = 0
        self.has_begun = False
        self.last: tuple[Any, ...] = ()  # state, control and other arguments of the last phase
        self._name_run(folder)
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
        """Log at the step of the whole run."""
        self._send("on_log", state, control, others)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Remember the last state: the run goes on in the next phase."""
        self.last = (copy.copy(state), control, others)

    def end(self) -> None:
        """End the run of each tracker."""
        if self.last:
            self._send("on_train_end", *self.last)

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
        name = path.read_text() if path.is_file() else None
        output = Path(str(self.training.output_dir)).parents[1].resolve().name
        self.training.run_name = self.training.run_name or f"{output}-{name}"
        if name:
            os.environ.setdefault("WANDB_RUN_ID", name)
            os.environ.setdefault("WANDB_RESUME", "allow")
