"""The runs of a study log warnings alone."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only_warnings() -> Iterator[None]:
    """Within the context the library logs warnings alone, and `datasets` shows no bars."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_shown = not are_progress_bars_disabled()
    logger = logging.getLogger("hf_transfer")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(before)
        if were_shown:
            enable_progress_bars()
