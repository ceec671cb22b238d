"""What Trainer would refuse late is refused before a run begins."""

import pytest
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    ResNetConfig,
    SchedulerType,
)

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import UserError
from hf_transfer.training.checks import require_optimizer, require_supported

# What a schedule needs beside its name.
SCHEDULE_OPTIONS = {
    "cosine_with_min_lr": {"min_lr": 0.0},
    "cosine_warmup_with_min_lr": {"min_lr": 0.0},
    "warmup_stable_decay": {"num_decay_steps": 3},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "One of min_lr or min_lr_rate"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"lr_scheduler_kwargs": {"cycles": 2}}, "--lr_scheduler_kwargs {'cycles': 2}: "),
        ({"optim_args": "fast"}, "does not take --optim_args fast"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, "--optim_args momentum=much"),
        ({"optim": "sgd", "optim_args": "nesterov=1"}, "--optim sgd does not take"),
        ({"optim": "rmsprop", "optim_args": "alpha=-3"}, "--optim rmsprop does not take"),
        ({"torch_compile": True, "torch_compile_mode": "fast"}, "mode fast: Unrecognized mode"),
        ({"optim_target_modules": "attn"}, "--optim_target_modules does not belong to --optim"),
    ],
)
def test_arguments_that_optimizer_or_schedule_do_not_take_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        require_optimizer(TrainingConfig(use_cpu=True, **changes))
    assert message in refusal.value.message


@pytest.mark.parametrize("name", [each.value for each in SchedulerType])
def test_every_schedule_can_be_had(name: str) -> None:
    options = SCHEDULE_OPTIONS.get(name, {})
    training = TrainingConfig(use_cpu=True, lr_scheduler_type=name, lr_scheduler_kwargs=options)
    require_optimizer(training)


@pytest.mark.parametrize(
    ("optim", "arguments"),
    [
        ("adamw_torch", None),
        ("adamw_torch_fused", None),
        ("adafactor", None),
        ("adagrad", None),
        ("rmsprop", "alpha=0.9"),
        ("sgd", "momentum=0.9,nesterov=true"),
    ],
)
def test_every_optimizer_of_torch_can_be_had(optim: str, arguments: str | None) -> None:
    require_optimizer(TrainingConfig(use_cpu=True, optim=optim, optim_args=arguments))


def test_gradient_checkpointing_is_refused_where_the_network_has_none() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = AutoModelForImageClassification.from_config(config)
    with pytest.raises(UserError, match="ResNetForImageClassification does not support it"):
        require_supported(model, TrainingConfig(use_cpu=True).changed(gradient_checkpointing=True))


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_noise_is_for_networks_with_embeddings_of_tokens(alpha: float | None) -> None:
    training = TrainingConfig(use_cpu=True, neftune_noise_alpha=alpha)
    text = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    require_supported(AutoModelForSequenceClassification.from_config(text), training)
    image = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = AutoModelForImageClassification.from_config(image)
    if alpha is None:
        require_supported(model, training)
    else:
        with pytest.raises(UserError, match="has no embeddings of tokens"):
            require_supported(model, training)
