"""A script as it is run by `python SCRIPT FLAGS`, but that counts what it does, and can kill itself at one of these.

watched.py JSON SCRIPT FLAGS
"""

import atexit
import json
import os
import random
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from tests.crash.disk import DiskWatch, die
from tests.crash.moments import Kill


class StepWatch:
    """Counts the steps of training, and dies before or after one of them."""

    def __init__(self, kill: Kill | None) -> None:
        self.kill = kill if kill and kill.kind == "step" else None
        self.steps = 0

    def install(self) -> None:
        """Watch every Trainer from now on."""
        real = transformers.Trainer.training_step

        def training_step(*args: Any, **options: Any) -> Any:
            is_the_one = self.kill is not None and self.steps == self.kill.number
            if is_the_one and self.kill and self.kill.side == "before":
                die()
            loss = real(*args, **options)
            self.steps += 1
            return die() if is_the_one else loss

        transformers.Trainer.training_step = training_step


def main() -> None:
    job = json.loads(sys.argv[1])
    rank = int(os.environ.get("RANK", "0"))
    kill = Kill(**job["kill"]) if job["kill"] else None
    if kill and kill.rank != rank:
        kill = None
    disk, steps = DiskWatch(Path(job["root"]), kill), StepWatch(kill)
    disk.install()
    steps.install()
    random.seed()  # as in a process that nobody forked
    np.random.seed()
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")  # raises SystemExit if it fails
    if job["report"] and rank == 0:
        counted = {"steps": steps.steps, "operations": [asdict(each) for each in disk.operations]}
        Path(job["report"]).write_text(json.dumps(counted))
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(
        0
    )  # to take apart all that was imported would copy it first, page by page: half a second


if __name__ == "__main__":
    main()
