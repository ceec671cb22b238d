"""What argparse refuses, in our words. Loads no library."""

import re

from hf_transfer.errors import UserError, unknown

ARGUMENT = re.compile(r"argument ([^\s/:]+)\S*: (.*)", re.DOTALL)  # its first name, and the reason
CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
# What argparse says of a value -> what the value is, and the fix.
REASONS = (
    (r"invalid int value: (.*)", "is not a whole number", "give a whole number"),
    (r"invalid float value: (.*)", "is not a number", "give a number, for example 0.5"),
    (r"Truthy value expected: got (\S+)", "is neither true nor false", "give true or false"),
    (r"expected (?:one|at least one) argument", "has no value", ""),
    (r"invalid \w+ value: (.*)", "is not understood", ""),
)


def as_user_error(message: str, see_help: str) -> UserError:
    """The error for a message of argparse; `see_help` is its hint if there is no better one."""
    argument = ARGUMENT.match(message)
    if not argument:
        return UserError(message, see_help)
    name, reason = argument.groups()
    choice = CHOICE.match(reason)
    if choice:
        kind = name if name.startswith("-") else name.lower()
        return unknown(kind, choice[1], choice[2].replace("'", "").split(", "))
    for pattern, what, fix in REASONS:
        found = re.match(pattern, reason, re.DOTALL)
        if found:
            value = "".join(f" {given}" for given in found.groups())
            return UserError(f"{name}{value} {what}", fix or see_help)
    return UserError(f"{name}: {reason}", see_help)
