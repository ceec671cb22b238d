"""Supervised pre-training: train a source model from its config, to start other tasks from.

python recipes/pretrain.py --config recipes/configs/letters_resnet.yaml
"""

from hf_transfer import (
    PRETRAINING,
    TransferConfig,
    build_checkpoint,
    choose_plan,
    evaluate,
    find_task,
    load_data,
    parse_config,
    preflight,
    run_command,
    run_plan,
    save,
)


def main() -> None:
    config = parse_config(PRETRAINING)
    task, seed = find_task(config.task.task), config.training.seed
    config = preflight(config, task)

    data = load_data(config.data, task, seed)
    checkpoint = build_checkpoint(config.source_model, task, data.labels, seed)
    plan = choose_plan(TransferConfig(strategy="scratch"), checkpoint, data, config.training)
    trained = run_plan(plan, checkpoint, data, config.training, config.data.max_length)
    record = evaluate(trained, data, config.evaluation)
    save(trained, record, config)


if __name__ == "__main__":
    run_command(main)
