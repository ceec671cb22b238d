"""The start of a recipe: its flags, read and checked before anything is loaded."""

from collections.abc import Sequence

from hf_transfer.cli.flags import read_config
from hf_transfer.config.run import FINE_TUNING, RunConfig


def parse_config(task: str | None = None, groups: Sequence[str] = FINE_TUNING) -> RunConfig:
    """The config of a run, from the command line: a YAML file first, flags on top.

    Checked before anything is loaded: flags and their combinations, the output folder, the kind
    of the checkpoint, names of metrics and methods, the right to write and to push. Raises
    UserError, at the first thing that a run could not honour.
    """
    config = read_config(task, groups)
    from hf_transfer.preflight import preflight

    preflight(config)
    return config
