"""A saved model gives the predictions of the run that made it, with nothing of the run at hand."""

from pathlib import Path

import numpy as np
import pytest

from hf_transfer.cli.flags import read_config
from hf_transfer.config.evaluation import EvaluationConfig
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.evaluation.evaluate import evaluate, measure
from hf_transfer.evaluation.predict import Predictions, predict
from hf_transfer.inference import load_predictor
from hf_transfer.models.checkpoint import load_checkpoint
from hf_transfer.sharing.folder import save
from hf_transfer.studies.choose import choose_plan
from hf_transfer.training.engine import run_plan


@pytest.mark.parametrize(
    ("task_name", "model", "dataset", "flags"),
    [
        ("text-classification", "tiny_bert", "text_file", ("--strategy", "full")),
        (
            "text-classification",
            "tiny_bert",
            "text_file",
            ("--strategy", "head", "--pooling", "mean"),
        ),
        (
            "text-classification",
            "tiny_bert",
            "text_file",
            ("--strategy", "lora", "--keep_adapter", "true"),
        ),
        ("image-classification", "tiny_resnet", "picture_folder", ("--strategy", "full")),
    ],
    ids=["texts", "mean pooling", "adapter", "images"],
)
def test_a_saved_model_gives_the_logits_and_intervals_of_its_run(
    task_name: str,
    model: str,
    dataset: str,
    flags: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    sources = ("--model_name_or_path", request.getfixturevalue(model))
    sources += ("--dataset_name", request.getfixturevalue(dataset))
    sources += ("--label_column", "animal") if dataset == "text_file" else ()
    options = ("--max_steps", "5", "--learning_rate", "1e-2", "--use_cpu", "--disable_tqdm", "true")
    words = (*sources, "--output_dir", tmp_path / "run", *options, *flags)
    config = read_config(task_name, argv=[*map(str, words)])
    data = load_data(config.data, config.task, seed=0)
    checkpoint = load_checkpoint(config.model, data)
    choice = choose_plan(config.transfer, checkpoint, data, config.training, config.cache)
    trained = run_plan(choice.plan, checkpoint, data, config.training, config.cache)
    of_run = predict(trained.predictor, data.test, trained.training)
    record = save(trained, evaluate(trained, data, config.evaluation, choice), config)

    predictions = predict(load_predictor(str(tmp_path / "run")), data.test)
    assert predictions.ids == of_run.ids
    assert np.abs(predictions.logits - of_run.logits).max() < 1e-6
    assert len(np.unique(predictions.logits.round(4), axis=0)) > 5
    evaluation = measure(predictions, data.labels, config.evaluation)
    assert evaluation.metrics["accuracy"] == record.metrics["accuracy"]
    for name, metric in record.metrics.items():
        found = vars(evaluation.metrics[name])
        assert found == pytest.approx(vars(metric), abs=1e-5), name
    assert evaluation.confusion == record.evaluation.confusion


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model"):
        load_predictor(str(tmp_path / "nothing"))


def test_predictions_are_measured_with_no_model_at_hand() -> None:
    logits = np.array([[2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, -2.0]])
    predictions = Predictions(tuple("abcd"), logits, np.array([0, 1, 0, 1]))
    evaluation = measure(predictions, ("x", "y"), EvaluationConfig(metrics=["accuracy"]), "mine")
    assert (evaluation.split, evaluation.n, list(evaluation.metrics)) == ("mine", 4, ["accuracy"])
    accuracy = evaluation.metrics["accuracy"]
    assert accuracy.low < accuracy.value == 0.75 < accuracy.high
    assert evaluation.confusion == [[0, 0, 2], [1, 0, 1], [1, 1, 1]]
    assert evaluation.baselines == {}
