"""How a program of ours starts, speaks and ends."""

import importlib.metadata
import itertools
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_transfer.errors import Finished, Stopped, UserError

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on


def run_command(main: Callable[[], None]) -> None:
    """Run a program's `main`; what the user can mend ends in two lines and exit code 2; `--debug` shows the rest.

    SIGTERM and Ctrl-C end it with exit code 75 and the command that goes on.
    """
    debug = _take_debug_flag(sys.argv)
    _show_log()
    try:
        with _terminating_as_interrupted():
            _refuse_namesake()
            main()
    except UserError as error:
        if debug:
            raise
        _say(f"error: {error.message}\nhint: {error.hint}\n")
        sys.exit(EXIT_USER_ERROR)
    except Finished as end:
        _say(f"{end}\n")
    except (Stopped, KeyboardInterrupt) as end:
        if debug:
            raise
        where = str(end) or "stopped"
        _say(f"\n{where}; to go on, run the same command again:\n  {_own_command()}\n")
        sys.exit(EXIT_STOPPED)


@contextmanager
def _terminating_as_interrupted() -> Iterator[None]:
    """Within the context SIGTERM does what Ctrl-C does."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only there Python lets signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if (
            signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        ):  # once stopped, it is ignored to the end
            signal.signal(signal.SIGTERM, before)


def _own_command() -> str:
    """What was typed, less what would start the run over."""
    words, typed = (
        [Path(sys.orig_argv[0]).name],
        iter(itertools.zip_longest(sys.orig_argv[1:], sys.orig_argv[2:])),
    )
    for word, after in typed:
        if word == "--overwrite_output_dir" and after in ("true", "false", "True", "False"):
            next(typed)
        elif not word.startswith("--overwrite_output_dir"):
            words.append(word)
    if "--config" in words:  # it may stand there, too
        words += ["--overwrite_output_dir", "false"]
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return shlex.join(words) + ("   (by the launcher, as before)" if several else "")


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _say(text: str) -> None:
    """One process speaks for all of them."""
    if _is_first():
        sys.stderr.write(text)


def _show_log() -> None:
    log = logging.getLogger("hf_transfer")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO if _is_first() else logging.ERROR)


def _take_debug_flag(argv: list[str]) -> bool:
    """Whether a bare `--debug` stands in `argv`, which loses it; with a value it is TrainingArguments' own flag."""
    for position, word in enumerate(argv):
        bare = position + 1 == len(argv) or argv[position + 1].startswith("--")
        if word == "--debug" and bare:
            del argv[position]
            return True
    return False


def _refuse_namesake() -> None:
    """Raise if PyPI's discontinued downloader `hf_transfer`, which owns the same import name, is installed too."""
    try:
        version = importlib.metadata.version("hf_transfer")
    except importlib.metadata.PackageNotFoundError:
        return
    raise UserError(
        f"the package hf_transfer {version} (a discontinued downloader) is installed and owns our import name",
        "pip uninstall -y hf_transfer && pip install --force-reinstall --no-deps hf-transfer-learning",
    )
