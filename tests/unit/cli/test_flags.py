from pathlib import Path

import pytest

from hf_transfer.cli.flags import read_config
from hf_transfer.config.run import COMPARING, PRETRAINING
from hf_transfer.config.validate import NOT_OFFERED
from hf_transfer.errors import UserError

GIVEN = ["--model_name_or_path", "x", "--dataset_name", "y", "--use_cpu", "--output_dir"]


def _flags(tmp_path: Path, *flags: str) -> list[str]:
    return [*GIVEN, str(tmp_path / "out"), *flags]


def test_a_file_is_read_first_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("strategy: full\nlearning_rate: 1e-3\nmetrics: [accuracy, log_loss]\nseed: 7\n")
    config = read_config(argv=_flags(tmp_path, "--config", str(path), "--seed", "8"))
    assert config.transfer.strategy == "full"
    assert config.training.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as text
    assert config.evaluation.metrics == ["accuracy", "log_loss"]
    assert config.training.seed == 8


def test_mappings_in_a_file_become_json(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "model_type: resnet\nconfig_overrides: {depths: [1, 2]}\ndataset_name: y\nuse_cpu: true\n"
    )
    config = read_config(
        groups=PRETRAINING, argv=["--config", str(path), "--output_dir", str(tmp_path / "out")]
    )
    assert config.source_model.config_overrides == '{"depths": [1, 2]}'


def test_a_recipe_offers_only_the_flags_that_it_honours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown flag '--budgets'"):
        read_config(argv=_flags(tmp_path, "--budgets", "1"))
    config = read_config(
        groups=COMPARING, argv=_flags(tmp_path, "--budgets", "1", "2", "--layer_decay", "0.8")
    )
    assert (config.study.budgets, config.transfer.layer_decay) == ([1, 2], 0.8)
    with pytest.raises(UserError, match="unknown flag '--strategy'") as caught:
        read_config(groups=COMPARING, argv=_flags(tmp_path, "--strategy", "full"))
    assert "--strategies" in caught.value.hint
    with pytest.raises(UserError, match="unknown flag '--keep_adapter'"):
        read_config(groups=COMPARING, argv=_flags(tmp_path, "--keep_adapter"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--lora_rank", "4", "--strategies", "head", "full"],
            "--lora_rank does not belong to --strategies head full",
        ),
        (["--examples_per_class", "4"], "--examples_per_class does not belong to a comparison"),
    ],
)
def test_a_comparison_refuses_what_none_of_its_runs_would_honour(
    flags: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_config(groups=COMPARING, argv=_flags(tmp_path, *flags))


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (["--strategy", "hed"], "unknown --strategy 'hed'", "did you mean 'head'"),
        (["--strategi", "head"], "unknown flag '--strategi'", "did you mean '--strategy'"),
        (
            ["--train_epochs", "3"],
            "unknown flag '--train_epochs'",
            "did you mean '--num_train_epochs'",
        ),
        (["--lora_rank", "0"], "--lora_rank 0 is too small", "1 or more"),
        (["--confidence", "95"], "--confidence 95.0 is no level", "0.95"),
        (["--max_length", "long"], "--max_length 'long' is not a whole number", "whole number"),
        (["--max_length", "1.5"], "--max_length '1.5' is not a whole number", "whole number"),
        (["--layer_decay", "0,5"], "--layer_decay '0,5' is not a number", "for example 0.5"),
        (["--learning_rate"], "--learning_rate has no value", "--help"),
        (["--metrics"], "--metrics has no value", "--help"),
        (["--use_cpu", "maybe"], "--use_cpu maybe is neither true nor false", "true or false"),
        (["--debug", "foo"], "--debug 'foo' is not understood", "--help"),
        (["--save_strategy", "best"], "unknown --save_strategy 'best'", "no, steps, epoch"),
        (["--learning_rate", "0"], "--learning_rate 0.0 is too small", "more than 0"),
        (
            ["--early_stopping_patience", "3", "--eval_strategy", "no"],
            "needs evaluations",
            "--eval_strategy",
        ),
        (["--eval_do_concat_batches", "false"], "is not offered", "over the whole split"),
        (["--dataloader_persistent_workers"], "needs workers", "--dataloader_num_workers"),
        (["--bf16_full_eval"], "--bf16_full_eval True is not offered", "--bf16 is enough"),
        (["--seed", "3", "4"], "--seed takes one value", "--help"),
        (["--eval_strategy", "often"], "unknown --eval_strategy 'often'", "no, steps, epoch"),
        (["--baselines", "knn"], "unknown value of --baselines 'knn'", "majority, raw_inputs"),
        (["--config", "nowhere.yaml"], "no config file 'nowhere.yaml'", "recipes/configs"),
        (
            ["--resume_from_checkpoint", "x"],
            "--resume_from_checkpoint x is not offered",
            "see --resume",
        ),
        (["--hub_strategy", "every_save"], "is not offered", "published once"),
    ],
)
def test_what_does_not_fit_is_said_with_the_fix(
    tmp_path: Path, flags: list[str], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as refusal:
        read_config(argv=_flags(tmp_path, *flags))
    assert message in refusal.value.message
    assert hint in refusal.value.hint


def test_an_unknown_key_names_the_file_and_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("datset_name: y\n")
    with pytest.raises(UserError, match=r"unknown key 'datset_name' in .*my\.yaml") as refusal:
        read_config(argv=_flags(tmp_path, "--config", str(path)))
    assert "did you mean 'dataset_name'" in refusal.value.hint


def test_a_missing_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataset_name is missing"):
        read_config(argv=["--model_name_or_path", "x", "--output_dir", str(tmp_path / "out")])


def test_a_folder_with_another_run_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "record.json").write_text("{}")
    with pytest.raises(UserError, match="holds another run"):
        read_config(argv=_flags(tmp_path))
    assert read_config(
        argv=_flags(tmp_path, "--overwrite_output_dir")
    ).training.overwrite_output_dir


def test_every_flag_that_is_not_offered_exists_and_has_a_harmless_value(tmp_path: Path) -> None:
    training = read_config(argv=_flags(tmp_path)).training
    assert len(NOT_OFFERED) >= 8
    for name, (harmless, _) in NOT_OFFERED.items():
        assert getattr(training, name) in harmless


def test_a_launcher_that_would_shard_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="--use_fsdp of the launcher is not offered"):
        read_config(argv=["--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", "z"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nstrategy: [head\n", "line 3 of PATH is not YAML"),
        ("seed: 1\n\tstrategy: head\n", "line 2 of PATH is not YAML"),
        ("seed: 1\nstrategy: a: b\n", "line 2 of PATH is not YAML"),
        ("- seed\n", "PATH holds no flags"),
        ("", "PATH holds no flags"),
        ("lr: 3\n", "unknown key 'lr' in PATH"),
        ("1: 3\n", "unknown key '1' in PATH"),
        ("strategy: hed\n", "unknown --strategy 'hed'"),
        ("lr_scheduler_kwargs: [1]\n", "--lr_scheduler_kwargs '1' is not a JSON object"),
        ("deepspeed: x.json\n", "--deepspeed is not offered"),
        ("seed: -1\n", "--seed -1 is too small"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        read_config(argv=_flags(tmp_path, "--config", str(path)))
    assert refusal.value.message.startswith(message.replace("PATH", str(path)))
    assert refusal.value.hint


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(b"seed: \xff\xfe\n")
    with pytest.raises(UserError, match=r"my\.yaml is not YAML"):
        read_config(argv=_flags(tmp_path, "--config", str(path)))


def test_a_key_from_elsewhere_is_answered_with_ours(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("wandb: true\n")
    with pytest.raises(UserError) as refusal:
        read_config(argv=_flags(tmp_path, "--config", str(path)))
    assert refusal.value.hint == "here it is report_to: wandb"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("eval_strategy: no", "eval_strategy", "no"),  # YAML 1.1 reads it as false
        ("logging_strategy: no", "logging_strategy", "no"),
        ("run_name: 12:30", "run_name", "12:30"),  # and this as a number
        ("run_name: 007", "run_name", "007"),
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("seed: 1_000", "seed", 1000),
        ("full_determinism: on", "full_determinism", True),
        ("overwrite_output_dir: yes", "overwrite_output_dir", True),
        ("hub_private_repo: off", "hub_private_repo", False),
        ("max_steps: null", "max_steps", -1),
        ("report_to: [wandb, trackio]", "report_to", ["wandb", "trackio"]),
        ("lr_scheduler_kwargs: {min_lr: 1.0e-6}", "lr_scheduler_kwargs", {"min_lr": 1e-6}),
    ],
)
def test_a_value_in_a_file_means_what_it_would_on_the_command_line(
    line: str, name: str, value: object, tmp_path: Path
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"{line}\n")
    config = read_config(argv=_flags(tmp_path, "--config", str(path)))
    assert getattr(config.training, name) == value


def test_a_backend_for_several_processes_is_no_obstacle_to_one(tmp_path: Path) -> None:
    assert read_config(argv=_flags(tmp_path, "--ddp_backend", "gloo")).training.ddp_backend is None
