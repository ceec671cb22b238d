"""`kill -9` at any moment, then the same command again: it ends with the weights of the unbroken run, to the bit."""

import itertools

import pytest

from tests.crash.conftest import CONTROL, OURS
from tests.crash.moments import Moment, draw
from tests.crash.runs import Crashes, Outcome, Subject

MODELS = ("ViT", "DINOv2", "ResNet", "BERT")
# Trials of each model by processes: killed in steps, by the clock, in writes. 200 in all.
TRIALS = {1: {"steps": 12, "clocks": 4, "writes": 19}, 2: {"steps": 5, "clocks": 2, "writes": 8}}
CONTROL_TRIALS = {"steps": 4, "clocks": 0, "writes": 6}
# The sample of `make test`: of one process every eighth, from this one on; of two processes these.
SAMPLED, SAMPLED_FROM = 8, {"ViT": 0, "DINOv2": 5, "ResNet": 2, "BERT": 7}
SAMPLED_OF_TWO = {"ResNet": (1, 9)}

Outcomes = dict[str, dict[tuple[str, int], list[Outcome]]]


def _trials() -> list[object]:
    """All trials: model, processes, moments; those that are not in the sample marked slow."""
    trials = []
    for model, processes in itertools.product(MODELS, TRIALS):
        drawn = draw(f"{model} {processes}", processes, **TRIALS[processes])
        for number, moments in enumerate(drawn):
            quick = (
                range(SAMPLED_FROM[model], 100, SAMPLED)
                if processes == 1
                else SAMPLED_OF_TWO.get(model, ())
            )
            name = "-".join((model, str(processes), *map(str, moments)))
            marks = () if number in quick else pytest.mark.slow
            trials.append(pytest.param(model, processes, moments, id=name, marks=marks))
    return trials


def test_there_are_200_trials_and_a_sample_of_20() -> None:
    trials = _trials()
    assert len(trials) == 200
    assert sum(not trial.marks for trial in trials) == 20


@pytest.mark.parametrize(("model", "processes", "moments"), _trials())
def test_a_killed_run_ends_as_the_unbroken_one(
    model: str,
    processes: int,
    moments: tuple[Moment, ...],
    subjects: dict[str, Subject],
    crashes: Crashes,
    outcomes: Outcomes,
) -> None:
    outcome = crashes.attempt(subjects[model], processes, moments)
    outcomes[OURS][model, processes].append(outcome)
    assert outcome.kills, "it ended before it could be killed"
    assert outcome.resumed, outcome.output
    assert not outcome.started_over
    assert outcome.equal
    assert outcome.tidy


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_same_kills_of_a_bare_trainer_are_counted(
    model: str, subjects: dict[str, Subject], crashes: Crashes, outcomes: Outcomes
) -> None:
    for moments in draw(f"{model} bare", 1, **CONTROL_TRIALS):
        outcomes[CONTROL][model, 1].append(crashes.attempt(subjects[model], 1, moments, bare=True))
    assert len(outcomes[CONTROL][model, 1]) == 10
