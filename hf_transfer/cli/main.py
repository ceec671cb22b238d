"""`hf-transfer`: fine-tune pretrained checkpoints with few labels, and use what came out."""

import argparse
import re
from importlib.metadata import version
from typing import NoReturn

from hf_transfer.cli import cache, plan, predict, run
from hf_transfer.cli.command import run_command
from hf_transfer.errors import UserError, unknown

COMMANDS = (run, plan, predict, cache)  # heavy imports wait until a command needs them
CHOICE = re.compile(r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are UserErrors and not a usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        choice = CHOICE.match(message)
        if choice:
            raise unknown("command", choice[1], choice[2].replace("'", "").split(", "))
        raise UserError(message, f"see {self.prog} --help")


def main() -> None:
    """Entry point of the console script."""
    run_command(_run_subcommand)


def _run_subcommand() -> None:
    parser = Parser(prog="hf-transfer", description=__doc__)
    number = version("hf-transfer-learning")
    parser.add_argument("--version", action="version", version=f"hf-transfer-learning {number}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    arguments = parser.parse_args()
    arguments.action(arguments)
