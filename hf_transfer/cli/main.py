"""`hf-transfer`: fine-tune pretrained checkpoints with few labels, and use what came out."""

import argparse
import sys
from importlib.metadata import version
from typing import NoReturn

from hf_transfer.cli import cache, embed, plan, predict, run
from hf_transfer.cli.command import run_command
from hf_transfer.cli.parser_errors import as_user_error
from hf_transfer.errors import UserError

COMMANDS = (run, plan, predict, embed, cache)  # heavy imports wait until a command needs them
MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are UserErrors and not a usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        if message.startswith(MISSING):
            first = message.removeprefix(MISSING).split(",")[0]
            usage = " ".join(self.format_usage().removeprefix("usage: ").split())
            raise UserError(
                f"{self.prog}: {first} is missing",
                f"type {usage.replace('[-h] ', '')}; {self.prog} --help says more",
            )
        raise as_user_error(message, f"see {self.prog} --help")


def main() -> None:
    """Entry point of the console script."""
    run_command(_run_subcommand)


def _run_subcommand() -> None:
    parser = Parser(prog="hf-transfer", description=__doc__)
    number = version("hf-transfer-learning")
    parser.add_argument("--version", action="version", version=f"hf-transfer-learning {number}")
    subparsers = parser.add_subparsers(required=True, dest="COMMAND")
    for each in COMMANDS:
        each.add_parser(subparsers)
    arguments, extra = parser.parse_known_args()
    if extra:
        command = f"hf-transfer {sys.argv[1]}"
        raise UserError(f"{command} does not take {extra[0]!r}", f"see {command} --help")
    arguments.action(arguments)
