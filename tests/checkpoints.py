"""Checkpoints for tests: load_checkpoint without data."""

from collections.abc import Sequence

from hf_transfer.config.data import ProblemType
from hf_transfer.config.model import ModelConfig
from hf_transfer.data.sources import Data, Origin
from hf_transfer.models.checkpoint import Checkpoint, load_checkpoint
from hf_transfer.tasks import Task


def load(
    name: str,
    task: Task,
    labels: Sequence[str],
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    seed: int = 0,
    problem_type: ProblemType = "single_label_classification",
    keep_head: bool = False,
) -> Checkpoint:
    """The checkpoint `name` (Hub id, folder, builtin:NAME) with a head for label names."""
    config = ModelConfig(name, revision, trust_remote_code, keep_head)
    data = Data({}, tuple(labels), Origin("made"), "", task, problem_type)
    return load_checkpoint(config, data, seed)
