"""The architectures of transformers, each as a saved tiny model, and a table of what became of them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_transfer.models.head import set_labels
from hf_transfer.tasks import TASKS, Task
from tests.architectures.tiny import inputs_for, tiny_config

OLD_LABELS = tuple(f"old {number}" for number in range(7))

# Tried by every `make test`; all others are marked slow.
SAMPLE = {
    "image-classification": ("vit", "resnet", "swin", "clip", "deit", "pvt", "hgnet_v2"),
    "text-classification": (
        "bert",
        "roberta",
        "gpt2",
        "llama",
        "t5",
        "bart",
        "modernbert",
        "deberta-v2",
        "zamba2",
    ),
    "token-classification": ("camembert", "xlnet"),
    "audio-classification": ("wav2vec2", "whisper"),
}

# Of 42, 127, 101 and 12.
LEAST = {
    "image-classification": 36,
    "text-classification": 115,
    "token-classification": 90,
    "audio-classification": 10,
}

# Architectures that have no head to replace. Those that need a package which is not installed say so themselves.
LEFT_OUT = {
    "shieldgemma2": "answers yes or no with its language model: it has no output layer for labels"
}


@dataclass(frozen=True)
class Architecture:
    """A row of transformers' table of a task."""

    task: Task
    model_type: str

    @property
    def name(self) -> str:
        """How the tests and the table call it."""
        return f"{self.task.name}:{self.model_type}"


@dataclass(frozen=True)
class Subject:
    """A tiny model of an architecture with seven labels, saved in a folder, and inputs for it."""

    task: Task
    folder: Path
    inputs: dict[str, torch.Tensor]


def architectures(task: Task) -> list[Architecture]:
    """All architectures of a task, in the order of their names."""
    mapping = getattr(transformers, task.mapping)
    return [Architecture(task, model_type) for model_type in sorted(mapping._model_mapping)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that asks for an `architecture` on all of them."""
    if "architecture" not in metafunc.fixturenames:
        return
    every = [each for task in TASKS.values() for each in architectures(task)]
    params = [
        pytest.param(
            each,
            id=each.name,
            marks=() if each.model_type in SAMPLE[each.task.name] else pytest.mark.slow,
        )
        for each in every
    ]
    metafunc.parametrize("architecture", params, scope="session")


@pytest.fixture(scope="session")
def make_subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture], Subject]:
    """A function that builds and saves the tiny model of an architecture, once."""
    made: dict[str, Subject] = {}

    def make(architecture: Architecture) -> Subject:
        if architecture.name not in made:
            folder = tmp_path_factory.mktemp(architecture.model_type)
            made[architecture.name] = _save_tiny(architecture, folder)
        return made[architecture.name]

    return make


@pytest.fixture
def subject(
    architecture: Architecture, make_subject: Callable[[Architecture], Subject]
) -> Iterator[Subject]:
    """The tiny model of the architecture at hand; skipped with the reason where none can be built."""
    if architecture.model_type in LEFT_OUT:
        pytest.skip(LEFT_OUT[architecture.model_type])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    try:
        yield make_subject(architecture)
    except ImportError as error:
        package = str(error).split("requires the ")[-1].split(" library")[0]
        pytest.skip(f"needs the package {package}")
    finally:
        torch.set_num_threads(threads)


def _save_tiny(architecture: Architecture, folder: Path) -> Subject:
    task, config = architecture.task, tiny_config(architecture.model_type)
    config.architectures = [task.model_class_name(config)]
    set_labels(config, OLD_LABELS)
    transformers.set_seed(0)
    model = task.model_class.from_config(config)
    model.save_pretrained(folder)
    return Subject(task, folder, inputs_for(model, task.modality))


# Of the architectures that can be loaded, the share whose parts must give what the whole gives.
LEAST_SPLIT = 0.95

_splits: dict[str, dict[str, str | None]] = defaultdict(
    dict
)  # place -> architecture -> why it is run whole
_paddings: dict[str, list[str]] = defaultdict(list)  # side, or "none" -> architectures of texts
_sounds: list[str] = []  # of each audio architecture, what padding does to an answer
_results: dict[str, dict[str, Any]] = defaultdict(lambda: {"outcomes": Counter(), "reason": ""})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what became of each architecture."""
    if report.when == "call":
        _sounds.extend(str(row) for name, row in report.user_properties if name == "sounds")
    name = report.nodeid.partition("[")[2].rstrip("]")
    if (
        "tests/architectures" not in report.nodeid
        or ":" not in name
        or (report.when != "call" and report.passed)
    ):
        return
    _results[name]["outcomes"][report.outcome] += 1
    if report.skipped:
        _results[name]["reason"] = str(report.longrepr[-1]).removeprefix("Skipped: ")
    for place, reason in report.user_properties:
        if report.passed and place == "padding":
            _paddings[reason].append(name.partition(":")[2])
        elif report.passed:
            _splits[place][name] = reason


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run over all architectures in which too few of a task passed, whatever the reasons of those left out."""
    for task, least in LEAST.items():
        rows = [row["outcomes"] for name, row in _results.items() if name.startswith(f"{task}:")]
        passed = sum(outcomes["passed"] > 0 and not outcomes["failed"] for outcomes in rows)
        if len(rows) == len(architectures(TASKS[task])) and passed < least:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    for reasons in _splits.values():
        if _share_split(reasons) < LEAST_SPLIT and len(reasons) > sum(map(len, SAMPLE.values())):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _share_split(reasons: dict[str, str | None]) -> float:
    return sum(reason is None for reason in reasons.values()) / len(reasons)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table: tried, passed, left out with the reason of each."""
    for task in TASKS:
        rows = {
            name.partition(":")[2]: row
            for name, row in _results.items()
            if name.startswith(f"{task}:")
        }
        if len(rows) <= len(SAMPLE[task]):
            continue
        passed = [
            name
            for name, row in rows.items()
            if row["outcomes"]["passed"] and not row["outcomes"]["failed"]
        ]
        terminalreporter.write_line(f"{task}: {len(rows)} tried, {len(passed)} passed")
        for name, row in rows.items():
            if name not in passed:
                terminalreporter.write_line(f"    {name}: {row['reason'] or 'FAILED'}")
    for padding, names in sorted(_paddings.items()):
        terminalreporter.write_line(f"padding {padding}: {len(names)}: {', '.join(sorted(names))}")
    if _sounds:
        terminalreporter.write_line("a sound alone and in a batch, largest difference of logits:")
    for row in _sounds:
        terminalreporter.write_line(f"    {row}")
    for place, reasons in _splits.items():
        if len(reasons) > sum(map(len, SAMPLE.values())):
            share = _share_split(reasons)
            terminalreporter.write_line(
                f"split at {place}: {len(reasons)} tried, {share:.1%} equal, the rest run whole:"
            )
            for name, reason in reasons.items():
                if reason is not None:
                    terminalreporter.write_line(f"    {name}: {reason}")
