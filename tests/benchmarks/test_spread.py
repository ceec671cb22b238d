"""How far runs on the same labels lie apart that differ by their seed alone: `make bench`.

The spread of a study's draws is that of the labels and of the seed. What a strategy adds to it, by the random weights
of its head and the order of the rows, shows where the labels stay.
"""

import statistics

import pytest

from hf_transfer.config.data import DataConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.config.transfer import TransferConfig
from hf_transfer.data.sources import load_data
from hf_transfer.evaluation.predict import predict
from hf_transfer.job import make_job
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import run_plan
from tests import checkpoints

BUDGETS, DRAWS, SEEDS = (1, 2, 4, 8), 3, 5
STRATEGIES = ("full", "head_then_full")
TASK = find_task("image-classification")


@pytest.mark.slow
def test_digits_from_the_same_labels_with_other_seeds() -> None:
    print(
        f"\ndigits, {DRAWS} draws of the labels, {SEEDS} seeds each: deviation between seeds in points, mean of draws"
    )
    for budget in BUDGETS:
        spreads = {
            strategy: [_deviation(strategy, budget, draw) for draw in range(DRAWS)]
            for strategy in STRATEGIES
        }
        mean = {strategy: statistics.mean(values) for strategy, values in spreads.items()}
        assert mean["full"] > 0, "the seed plays no part"
        ratio = mean["head_then_full"] / mean["full"]
        said = ", ".join(f"{strategy} {value:.2f}" for strategy, value in mean.items())
        print(f"  {budget} a class: {said}   ratio {ratio:.2f}", flush=True)


def _deviation(strategy: str, budget: int, draw: int) -> float:
    """The standard deviation of the test accuracy over seeds, in points."""
    data = load_data(DataConfig("builtin:digits", examples_per_class=budget), TASK, seed=draw)
    accuracies = []
    for seed in range(SEEDS):
        training = TrainingConfig(use_cpu=True, disable_tqdm=True, seed=seed)
        training.output_dir = None  # a run that is kept nowhere
        checkpoint = checkpoints.load("builtin:letters-resnet", TASK, data.labels, seed=seed)
        plan = make_plan(TransferConfig(strategy=strategy), make_job(checkpoint, data, training))
        trained = run_plan(plan, checkpoint, data, training)
        predicted = predict(trained.predictor, data.splits["test"], training)
        accuracies.append(100 * float((predicted.outputs.argmax(1) == predicted.labels).mean()))
    return statistics.stdev(accuracies)
