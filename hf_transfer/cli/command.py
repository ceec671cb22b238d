"""How a program starts, logs and ends."""

import importlib.metadata
import itertools
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from hf_transfer.errors import Finished, Stopped, UserError

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes


def run_command(main: Callable[[], None]) -> None:
    """Run a program's `main`, and end the process as a command should.

    A UserError ends in two lines, `error:` and `hint:`, and exit code 2; `--debug` shows the
    traceback. SIGTERM and Ctrl-C end in exit code 75 and the command that resumes.
    """
    debug = _take_debug_flag(sys.argv)
    log = logging.getLogger("hf_transfer")
    if not log.handlers:
        log.addHandler(_StderrHandler())  # its format is the message alone
    log.setLevel(logging.INFO if _is_main_process() else logging.ERROR)
    try:
        with _sigterm_as_interrupt():
            _refuse_namesake()
            main()
    except UserError as error:
        if debug:
            raise
        _write_to_stderr(f"error: {error.message}\nhint: {error.hint}\n")
        sys.exit(EXIT_USER_ERROR)
    except Finished as end:
        _write_to_stderr(f"{end}\n")
    except (Stopped, KeyboardInterrupt) as end:
        if debug:
            raise
        reason = f"{str(end) or 'stopped'}; to resume, run the same command again:"
        _write_to_stderr(f"\n{reason}\n  {_resuming_command()}\n")
        sys.exit(EXIT_STOPPED)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is sys.stderr now: a notebook, or a test, may replace it between two runs."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The error stream."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write above the progress bars, which are drawn again below."""
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
        with bars.external_write_mode(sys.stderr) if bars else nullcontext():
            super().emit(record)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python handles signals there
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        # A run that was stopped ignores SIGTERM until it has ended: that stays.
        if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def output_may_end() -> Iterator[None]:
    """A context in which who reads what is printed may stop, as `| head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # at its end Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _resuming_command() -> str:
    """The command line of this process, without what would start the run over."""
    words = [Path(sys.orig_argv[0]).name]
    pairs = iter(itertools.zip_longest(sys.orig_argv[1:], sys.orig_argv[2:]))
    for word, after in pairs:
        if word == "--overwrite_output_dir" and after in ("true", "false", "True", "False"):
            next(pairs)
        elif not word.startswith("--overwrite_output_dir"):
            words.append(word)
    if "--config" in words:  # the file may hold the flag, too
        words += ["--overwrite_output_dir", "false"]
    has_launcher = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return shlex.join(words) + ("   (by the launcher, as before)" if has_launcher else "")


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _write_to_stderr(text: str) -> None:
    """Write to the error stream, below the progress bars that were not closed."""
    if _is_main_process():
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
        for bar in list(getattr(bars, "_instances", ())):
            bar.close()
        sys.stderr.write(text)


def _take_debug_flag(argv: list[str]) -> bool:
    """Whether `argv` holds a bare `--debug`, which is removed.

    With a value it is TrainingArguments' own flag.
    """
    for position, (word, after) in enumerate(itertools.zip_longest(argv, argv[1:], fillvalue="--")):
        if word == "--debug" and after.startswith("--"):
            del argv[position]
            return True
    return False


def _refuse_namesake() -> None:
    """Raise UserError if PyPI's `hf_transfer`, which has the same import name, is installed."""
    try:
        version = importlib.metadata.version("hf_transfer")
    except importlib.metadata.PackageNotFoundError:
        return
    raise UserError(
        f"the package hf_transfer {version} (a discontinued downloader) is installed and has our "
        "import name",
        "pip uninstall -y hf_transfer && "
        "pip install --force-reinstall --no-deps hf-transfer-learning",
    )
