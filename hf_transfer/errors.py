"""Errors that the user can fix, and the ways in which a run ends early."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Error that the user can fix: `message` names the value, `hint` the fix."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Stopped(Exception):  # noqa: N818 - an event, not an error
    """A signal stopped the run, and its training state is saved; the text names the step."""


class Finished(Exception):  # noqa: N818 - an event, not an error
    """Nothing is left to do; the text names what is there."""


def unknown(kind: str, value: str, choices: Iterable[str]) -> UserError:
    """Error for a value that is not one of `choices`; its hint begins with the nearest of them."""
    listed = list(choices)
    # Without the dashes of flags, which all of them share.
    names = {choice.lstrip("-"): choice for choice in listed}
    name = value.lstrip("-")
    close = difflib.get_close_matches(name, names, n=3)
    # Equal except for the ending is nearest: --strategies to --strategy, not --hub_strategy.
    best = max(close, key=lambda choice: choice.startswith(name[:-1]), default=None)
    nearest = names[best] if best is not None else None
    hint = f"did you mean {nearest!r}? " if nearest else ""
    if len(listed) <= 40:
        hint += f"choices: {', '.join(listed)}"
    return UserError(f"unknown {kind} {value!r}", hint.strip() or "see --help for the list")


def one_line(error: BaseException) -> str:
    """First line of an error's text that is not blank; the error's class if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
