"""What the user can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend: `message` names the value, `hint` says the fix."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Stopped(Exception):  # noqa: N818 - what happened, not what is wrong
    """A signal asked the run to stop, and its state is kept; the text says where it stands."""


class Finished(Exception):  # noqa: N818 - what happened, not what is wrong
    """There is nothing left to do; the text says what is there."""


def unknown(kind: str, value: str, choices: Iterable[str]) -> UserError:
    """The error for a value that is not one of `choices`; its hint leads with the nearest of them."""
    listed = list(choices)
    close = difflib.get_close_matches(value, listed, n=3)
    # What is the same but for its ending is nearest: --strategies to --strategy, not --hub_strategy.
    nearest = max(close, key=lambda choice: choice.startswith(value[:-1]), default=None)
    hint = f"did you mean {nearest!r}? " if nearest else ""
    if len(listed) <= 40:
        hint += f"choices: {', '.join(listed)}"
    return UserError(f"unknown {kind} {value!r}", hint or "see --help for the list")


def one_line(error: BaseException) -> str:
    """The first line of an error's text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
