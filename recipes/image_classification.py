"""Fine-tune an image checkpoint on labelled images.

accelerate launch recipes/image_classification.py --config recipes/configs/digits.yaml
"""

from hf_transfer import (
    choose_plan,
    evaluate,
    find_task,
    load_checkpoint,
    load_data,
    parse_config,
    preflight,
    require_metrics,
    run_command,
    run_plan,
    save,
)


def main() -> None:
    config = parse_config()
    task, seed = find_task("image-classification"), config.training.seed
    config = preflight(config, task)

    data = load_data(config.data, task, seed)
    require_metrics(config.evaluation.metrics, data.problem_type)
    checkpoint = load_checkpoint(
        **config.model.source,
        task=task,
        labels=data.labels,
        seed=seed,
        problem_type=data.problem_type,
    )
    plan = choose_plan(config.transfer, checkpoint, data, config.training, config.data.max_length)
    trained = run_plan(plan, checkpoint, data, config.training)
    record = evaluate(trained, data, config.evaluation)
    save(trained, record, config)


if __name__ == "__main__":
    run_command(main)
