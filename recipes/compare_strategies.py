"""Compare strategies over numbers of labels: where few favour the head, and more labels everything.

    python recipes/compare_strategies.py --config recipes/configs/digits_story.yaml

A run per strategy, number of labels per class (--budgets) and draw of these labels (--draws). It
resumes where it was stopped; table.md and table.png are written at the end.
"""

from hf_transfer import COMPARING, parse_config, run_command


def main() -> None:
    config = parse_config(groups=COMPARING)

    from hf_transfer import compare, write_tables

    records = compare(config)
    write_tables(records, config.output_dir, config.evaluation.confidence)


if __name__ == "__main__":
    run_command(main)
