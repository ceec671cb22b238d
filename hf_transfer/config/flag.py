"""How a flag is declared: default, help, and the checks that need nothing loaded."""

from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any


def flag(
    default: Any = MISSING,
    help: str = "",
    *,
    default_factory: Callable[[], Any] | None = None,
    init: bool = True,
    repr: bool = True,
    **checks: Any,
) -> Any:
    """A dataclass field that is a command line flag.

    `checks` are read by config/validate.py and data/columns.py: `minimum` (the value or more),
    `above` (more than the value), `maximum`, `below`; `strategies`, the only ones that use the
    flag; `modality`, the kind of input that it belongs to.
    """
    metadata = {"help": help, **checks}
    if default_factory is not None:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, init=init, repr=repr, metadata=metadata)
