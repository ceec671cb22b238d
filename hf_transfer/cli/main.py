"""`hf-transfer`: fine-tune pretrained checkpoints with few labels, and use what came out."""

import argparse

from hf_transfer.cli import cache, plan, predict, run
from hf_transfer.cli.command import run_command

COMMANDS = (run, plan, predict, cache)  # heavy imports wait until a command needs them


def main() -> None:
    """Entry point of the console script."""
    run_command(_run_subcommand)


def _run_subcommand() -> None:
    parser = argparse.ArgumentParser(prog="hf-transfer", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    arguments = parser.parse_args()
    arguments.action(arguments)
