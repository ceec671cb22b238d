import pytest
import torch
from torch.nn import functional as F

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import UserError
from hf_transfer.record import ProblemType
from hf_transfer.training.losses import balanced_weights, choose_loss, require_fitting_flags

LOGITS = torch.tensor([[1.0, -2.0], [0.5, 0.25], [3.0, 0.0]])
SETS = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
NUMBERS = torch.tensor([1.0, 2.0, 4.0])


def _arguments(**flags: object) -> TrainingConfig:
    return TrainingConfig(output_dir="x", use_cpu=True, **flags)


def test_rare_classes_weigh_more_and_balanced_ones_all_the_same() -> None:
    assert balanced_weights([0, 1] * 10, 2).tolist() == [1.0, 1.0]
    labels = [0] * 30 + [1] * 10
    assert balanced_weights(labels, 2).tolist() == pytest.approx([40 / 60, 40 / 20])
    skewed = choose_loss(
        "single_label_classification", _arguments(class_weights="balanced"), labels, 2
    )
    assert skewed({"logits": LOGITS}, torch.tensor([1, 1, 1])) == 2 * F.cross_entropy(
        LOGITS, torch.tensor([1, 1, 1])
    )


@pytest.mark.parametrize(
    ("problem_type", "logits", "labels", "expected"),
    [
        (
            "multi_label_classification",
            LOGITS,
            SETS,
            F.binary_cross_entropy_with_logits(LOGITS, SETS),
        ),
        ("regression", LOGITS[:, :1], NUMBERS, torch.tensor((0 + 1.5**2 + 1) / 3)),
    ],
)
def test_the_loss_is_the_mean_over_all_batches_of_a_step(
    problem_type: ProblemType, logits: torch.Tensor, labels: torch.Tensor, expected: torch.Tensor
) -> None:
    loss = choose_loss(problem_type, _arguments(), [], 2)
    assert loss({"logits": logits}, labels) == pytest.approx(expected)
    # As Trainer does: two batches of one step, each with the count of the whole step.
    count = labels.ne(-100).sum()
    parts = [
        loss({"logits": logits[rows]}, labels[rows], count) for rows in (slice(0, 2), slice(2, 3))
    ]
    assert sum(parts) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("class_weights", "balanced"),
        ("label_smoothing_factor", 0.1),
        ("metric_for_best_model", "accuracy"),
    ],
)
@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_flag_for_classes_only_is_refused(
    problem_type: ProblemType, flag: str, value: object
) -> None:
    with pytest.raises(UserError, match=f"--{flag} {value} does not fit {problem_type}"):
        require_fitting_flags(problem_type, _arguments(**{flag: value}))


def test_tokens_that_answer_for_no_word_do_not_count() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 1, -100], [2, 0, -100]])
    expected = F.cross_entropy(logits[labels >= 0], labels[labels >= 0])
    loss = choose_loss("single_label_classification", _arguments(), [], 4)
    assert float(loss({"logits": logits}, labels)) == pytest.approx(float(expected))
    halves = [loss({"logits": logits[[n]]}, labels[[n]], num_items_in_batch=3) for n in range(2)]
    assert float(sum(halves)) == pytest.approx(float(expected))
