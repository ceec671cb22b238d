"""Numbers that no run could use, and names that other tools have for our flags."""

from dataclasses import fields

import pytest

from hf_transfer.cli.flags import read_config
from hf_transfer.cli.foreign_names import FOREIGN_NAMES
from hf_transfer.config.bounds import TRAINER_BOUNDS
from hf_transfer.config.run import GROUPS
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import UserError

GIVEN = ["--model_name_or_path", "x", "--dataset_name", "y", "--use_cpu", "--output_dir", "none"]
NOT_FINITE = "is no finite number"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("learning_rate", "inf", NOT_FINITE),
        ("learning_rate", "nan", NOT_FINITE),
        ("learning_rate", "-1", "is too small"),
        ("warmup_steps", "nan", NOT_FINITE),
        ("warmup_steps", "-1", "is too small"),
        ("max_grad_norm", "nan", NOT_FINITE),
        ("max_grad_norm", "-1", "is too small"),
        ("num_train_epochs", "inf", NOT_FINITE),
        ("num_train_epochs", "0", "is too small"),
        ("max_steps", "0", "is too small"),
        ("max_steps", "-5", "is too small"),
        ("per_device_train_batch_size", "0", "is too small"),
        ("per_device_eval_batch_size", "0", "is too small"),
        ("gradient_accumulation_steps", "0", "is too small"),
        ("seed", "-1", "is too small"),
        ("seed", "99999999999", "is too large"),
        ("data_seed", "-1", "is too small"),
        ("eval_steps", "nan", NOT_FINITE),
        ("eval_steps", "inf", NOT_FINITE),
        ("eval_steps", "0", "is too small"),
        ("save_steps", "nan", NOT_FINITE),
        ("save_steps", "inf", NOT_FINITE),
        ("save_steps", "0", "is too small"),
        ("logging_steps", "nan", NOT_FINITE),
        ("logging_steps", "inf", NOT_FINITE),
        ("logging_steps", "0", "is too small"),
        ("weight_decay", "-1", "is too small"),
        ("weight_decay", "nan", NOT_FINITE),
        ("adam_beta1", "2", "is too large"),
        ("adam_beta2", "1", "is too large"),
        ("adam_epsilon", "-1", "is too small"),
        ("label_smoothing_factor", "2", "is too large"),
        ("label_smoothing_factor", "nan", NOT_FINITE),
        ("neftune_noise_alpha", "nan", NOT_FINITE),
        ("dataloader_num_workers", "-1", "is too small"),
        ("torch_empty_cache_steps", "0", "is too small"),
        ("eval_accumulation_steps", "0", "is too small"),
        ("eval_delay", "-1", "is too small"),
        ("ddp_timeout", "0", "is too small"),
        ("early_stopping_patience", "0", "is too small"),
        ("save_minutes", "inf", NOT_FINITE),
        ("average_last", "nan", NOT_FINITE),
        ("layer_decay", "nan", NOT_FINITE),
        ("confidence", "nan", NOT_FINITE),
        ("confidence", "0", "is too small"),
        ("cache_limit_gb", "-1", "is too small"),
        ("max_train_samples", "0", "is too small"),
        ("examples_per_class", "-1", "is too small"),
        ("max_length", "0", "is too small"),
    ],
)
def test_a_number_that_no_run_could_use_is_refused(flag: str, value: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        read_config(argv=[*GIVEN, f"--{flag}", value])
    assert refusal.value.message.startswith(f"--{flag} ")
    assert message in refusal.value.message
    assert refusal.value.hint.startswith("give ")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("seed", 0),
        ("max_steps", -1),
        ("max_grad_norm", 0.0),
        ("adam_beta1", 0.0),
        ("warmup_steps", 0.0),
        ("dataloader_num_workers", 0),
        ("logging_steps", 0.5),
    ],
)
def test_a_number_at_its_bound_is_taken(flag: str, value: float) -> None:
    config = read_config(argv=[*GIVEN, f"--{flag}", str(value)])
    assert getattr(config.training, flag) == value


def test_a_config_made_in_python_is_checked_when_it_is_made() -> None:
    with pytest.raises(UserError, match="--seed -1 is too small"):
        TrainingConfig(use_cpu=True, seed=-1)


def test_every_bound_is_of_a_flag() -> None:
    names = {each.name for each in fields(TrainingConfig)}
    assert len(TRAINER_BOUNDS) > 15
    assert names.issuperset(TRAINER_BOUNDS)


def test_every_name_from_elsewhere_stands_for_a_flag_and_is_none_itself() -> None:
    groups = [*GROUPS.values(), TrainingConfig]
    names = {each.name for group in groups for each in fields(group)}
    assert len(FOREIGN_NAMES) > 50
    for theirs, ours in FOREIGN_NAMES.items():
        assert theirs not in names
        assert ours.split()[0] in names


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--batch_size", "--per_device_train_batch_size"),
        ("--batch-size", "--per_device_train_batch_size"),
        ("--lr", "--learning_rate"),
        ("--epochs", "--num_train_epochs"),
        ("--num_epochs", "--num_train_epochs"),
        ("--model", "--model_name_or_path"),
        ("--dataset", "--dataset_name"),
        ("--dataset=y", "--dataset_name"),
        ("--wandb", "--report_to wandb"),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_ours(flag: str, ours: str) -> None:
    with pytest.raises(UserError) as refusal:
        read_config(argv=[*GIVEN, flag, "3"])
    assert refusal.value.message == f"unknown flag '{flag.split('=')[0]}'"
    assert refusal.value.hint == f"here it is {ours}"


def test_a_flag_that_is_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(UserError, match="unknown flag '--past_index'") as refusal:
        read_config(argv=[*GIVEN, "--past_index", "3"])
    assert "did you mean" not in refusal.value.hint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lr_scheduler_kwargs", "[1]"), "--lr_scheduler_kwargs '[1]' is not a JSON object"),
        (
            ("--lr_scheduler_kwargs", '{"a":'),
            "--lr_scheduler_kwargs '{\"a\":' is not a JSON object",
        ),
        (("--gradient_checkpointing_kwargs", "x"), "'x' is not a JSON object"),
        (("--accelerator_config", "x"), "--accelerator_config 'x' is not a JSON object"),
        (("--accelerator_config", '{"a": 1}'), "unexpected keyword argument 'a'"),
        (("--deepspeed", "x.json"), "--deepspeed is not offered"),
        (("--fsdp", "full_shard"), "--fsdp is not offered"),
        (("--eval_steps", "1.5"), "--eval_steps must be an integer if bigger than 1"),
    ],
)
def test_what_transformers_could_not_read_is_refused_by_name(
    words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        read_config(argv=[*GIVEN, *words])
    assert message in refusal.value.message


@pytest.mark.parametrize(("words", "value"), [((), True), (("false",), False), (("true",), True)])
def test_a_bare_flag_that_may_be_true_or_false_is_true(words: tuple[str, ...], value: bool) -> None:
    config = read_config(argv=[*GIVEN, "--hub_private_repo", *words])
    assert config.training.hub_private_repo is value
