"""Compare strategies over label budgets and draws: few labels favour the head, more everything.

python recipes/compare_strategies.py --config recipes/configs/digits_story.yaml
"""

from hf_transfer import (
    COMPARING,
    compare,
    find_task,
    parse_config,
    preflight,
    run_command,
    write_tables,
)


def main() -> None:
    config = parse_config(COMPARING)
    task = find_task(config.task.task)
    config = preflight(config, task)
    records = compare(config, task)
    write_tables(records, config.output_dir, config.evaluation.confidence)


if __name__ == "__main__":
    run_command(main)
