"""Runs that are killed and then resumed by the same command, compared with the unbroken run."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

from hf_transfer.resume.states import States
from tests.conftest import ROOT
from tests.crash.moments import Kill, Moment, Operation, Unbroken
from tests.forked import PATIENCE, ForkServer, Started

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Subject:
    """A model, the recipe that trains it, and how."""

    name: str
    recipe: str
    flags: tuple[str, ...]
    bare: tuple[str, ...]  # model and data, for the control

    def command(self, root: Path, processes: int) -> list[str]:
        """The script and its flags; everything is written below `root`."""
        batch = str(8 // processes)
        flags = [*self.flags, "--per_device_train_batch_size", batch, "--num_train_epochs", "3"]
        flags += [
            "--save_strategy",
            "steps",
            "--save_steps",
            "2",
            "--save_minutes",
            "0",
            "--learning_rate",
            "3e-3",
        ]
        flags += ["--eval_steps", "4", "--use_cpu", "--disable_tqdm", "true"]
        places = ["--output_dir", str(root / "run"), "--cache_dir", str(root / "store")]
        return [str(ROOT / "recipes" / f"{self.recipe}.py"), *flags, *places]

    def bare_command(self, root: Path) -> list[str]:
        """The same for the control."""
        return [str(HERE / "bare_trainer.py"), *self.bare, str(root / "run")]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial."""

    moments: tuple[Moment, ...]
    kills: int
    has_a_state: bool  # after the last kill
    resumed: bool
    started_over: bool  # though there was a state
    equal: bool
    tidy: bool
    output: str

    @property
    def kind(self) -> str:
        """Whether it died in its steps or while it wrote."""
        return "writes" if self.moments[0].kind == "write" else "steps"


@dataclass
class Crashes:
    """Trials of programs, each against its own unbroken run, which is made once."""

    first: ForkServer
    second: ForkServer  # runs that resume are children of another process, as the next command is
    folder: Path
    unbroken: dict[tuple[str, int, bool], tuple[Unbroken, bytes, Any]] = field(default_factory=dict)
    numbers: int = 0

    def attempt(
        self, subject: Subject, processes: int, moments: Sequence[Moment], bare: bool = False
    ) -> Outcome:
        """Kill a run at these moments, one after the other, then resume it to its end."""
        unbroken, weights, found = self._unbroken(subject, processes, bare)
        root = self._new_folder(subject.name)
        script, *flags = subject.bare_command(root) if bare else subject.command(root, processes)
        kills = 0
        for moment in moments:
            ended = _run(self.first, Job(root, processes, moment.of(unbroken)), script, *flags)
            if not any(each.code == -SIGKILL for each in ended):
                break
            kills += 1
        if not kills and moments[0].kind == "clock":  # it was faster than the unbroken one
            return self.attempt(
                subject, processes, [replace(moments[0], share=moments[0].share / 2)], bare
            )
        has_a_state = _has_a_state(root / "run")
        ended = _run(self.second, Job(root, processes), script, *flags)
        outcome = Outcome(
            tuple(moments),
            kills,
            has_a_state,
            resumed=not any(each.code for each in ended),
            started_over=has_a_state and not bare and not _resumed_from_a_state(root / "run"),
            equal=_result(root / "run") == (weights, found),
            tidy=not list(root.glob("run/checkpoints/.*.tmp")),
            output="\n".join(each.said for each in ended),
        )
        shutil.rmtree(root)
        return outcome

    def _unbroken(
        self, subject: Subject, processes: int, bare: bool
    ) -> tuple[Unbroken, bytes, Any]:
        key = (subject.name, processes, bare)
        if key not in self.unbroken:
            root = self._new_folder(subject.name)
            script, *flags = (
                subject.bare_command(root) if bare else subject.command(root, processes)
            )
            report, began = root.with_suffix(".json"), time.monotonic()
            for each in _run(self.first, Job(root, processes, report=report), script, *flags):
                assert each.code == 0, each.said
            seconds, counted = time.monotonic() - began, json.loads(report.read_text())
            operations = tuple(Operation(**each) for each in counted["operations"])
            self.unbroken[key] = (
                Unbroken(counted["steps"], seconds, operations),
                *_result(root / "run"),
            )
        return self.unbroken[key]

    def _new_folder(self, name: str) -> Path:
        self.numbers += 1
        root = self.folder / f"{self.numbers}-{name}"
        root.mkdir()
        return root


@dataclass(frozen=True)
class Job:
    """A folder that is watched, how many processes work in it, and when one of them dies; what watched.py is told."""

    root: Path
    processes: int
    kill: Kill | None = None
    report: Path | None = None

    def __str__(self) -> str:
        kill, report = (
            asdict(self.kill) if self.kill else None,
            str(self.report) if self.report else None,
        )
        return json.dumps({"root": str(self.root), "kill": kill, "report": report})


def _run(server: ForkServer, job: Job, *command: str) -> list[Started]:
    """The processes of a run, all of them ended. If one ends badly, the others are killed, as a launcher does."""
    words = (str(HERE / "watched.py"), str(job), *command)
    processes = (
        server.start_several(job.processes, *words) if job.processes > 1 else [server.start(*words)]
    )
    doom = time.monotonic() + (
        job.kill.seconds if job.kill and job.kill.kind == "clock" else PATIENCE
    )
    grace = job.kill.grace if job.kill else 1.0
    while not all(each.has_ended for each in processes):
        if any(each.code for each in processes):
            doom = min(doom, time.monotonic() + grace)
        for each in processes:
            if time.monotonic() > doom and not each.has_ended:
                each.send(SIGKILL)
        time.sleep(0.002)
    return processes


def _result(folder: Path) -> tuple[bytes, Any]:
    """The weights to the bit, and the metrics where there is a record."""
    weights, record = folder / "model.safetensors", folder / "record.json"
    found = json.loads(record.read_text())["evaluation"] if record.exists() else None
    return weights.read_bytes() if weights.exists() else b"", found


def _has_a_state(folder: Path) -> bool:
    """Whether there is a complete one, and the run is not finished; of the control, whether there is any."""
    run = folder / "checkpoints" / "run.json"
    if run.exists() and json.loads(run.read_text()).get("finished"):
        return False
    return States(folder / "checkpoints").newest() is not None or any(folder.glob("checkpoint-*"))


def _resumed_from_a_state(folder: Path) -> bool:
    record = folder / "record.json"
    phases = json.loads(record.read_text())["phases"] if record.exists() else []
    return any(phase.get("resumed_at") for phase in phases)


def table(outcomes: Mapping[tuple[str, int], Sequence[Outcome]]) -> list[str]:
    """Lines: what was killed how often, and how many had a state then, resumed, and ended as the unbroken run."""
    head = f"{'model':<10}{'processes':>10}{'runs':>6}{'steps':>7}{'writes':>8}{'kills':>7}"
    lines = [head + f"{'had a state':>13}{'resumed':>9}{'equal to the bit':>18}"]
    everything = [one for row in outcomes.values() for one in row]
    for (name, processes), row in [*outcomes.items(), (("all", 0), everything)]:
        kinds = [one.kind for one in row]
        counts = f"{len(row):>6}{kinds.count('steps'):>7}{kinds.count('writes'):>8}{sum(one.kills for one in row):>7}"
        resumed = f"{sum(one.has_a_state for one in row):>13}{sum(one.resumed for one in row):>9}"
        lines.append(
            f"{name:<10}{processes or '':>10}{counts}{resumed}{sum(one.equal for one in row):>18}"
        )
    return lines
