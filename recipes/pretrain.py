"""Supervised pre-training: a source model from random weights, for other tasks to start from.

    make letters-resnet    # draws letters of five alphabets, then runs letters_resnet.yaml

The textbooks' first step: a large labelled source dataset of the same kind of input as the target
task. The result is an ordinary checkpoint; fine-tune it with the recipe of its task.
"""

from hf_transfer import PRETRAINING, parse_config, run_command


def main() -> None:
    config = parse_config(groups=PRETRAINING)

    from hf_transfer import (
        TransferConfig,
        build_checkpoint,
        choose_plan,
        evaluate,
        load_data,
        run_plan,
        save,
    )

    seed = config.training.seed
    data = load_data(config.data, config.task, seed)
    # Architecture and size by --model_type and --config_overrides; no weight is loaded.
    checkpoint = build_checkpoint(config.source_model, data.task, data.labels, seed)
    choice = choose_plan(TransferConfig(strategy="scratch"), checkpoint, data, config.training)
    trained = run_plan(choice.plan, checkpoint, data, config.training)
    record = evaluate(trained, data, config.evaluation, choice)
    save(trained, record, config)


if __name__ == "__main__":
    run_command(main)
