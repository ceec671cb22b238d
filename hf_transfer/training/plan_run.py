"""PlanRun: what the phases of a run share."""

from dataclasses import dataclass

from datasets import Dataset

from hf_transfer.config.cache import CacheConfig
from hf_transfer.job import Job
from hf_transfer.resume.run_folder import SavedRun
from hf_transfer.strategies.plan import Plan
from hf_transfer.training.label_scaling import LabelScale
from hf_transfer.training.trackers import Trackers


@dataclass(frozen=True)
class PlanRun:
    """A plan that is being run.

    `train` and `validation` are encoded rows; the job's encoder gives labels on `scale`. Each step
    has `shards` batches of the phase's size, shared among the processes. Without a `folder` no
    training state is saved.
    """

    plan: Plan
    job: Job
    cache: CacheConfig
    train: Dataset
    validation: Dataset | None
    scale: LabelScale
    shards: int
    folder: SavedRun | None = None
    is_trial: bool = False  # logs nothing
    trackers: Trackers | None = None

    @property
    def accumulation(self) -> int:
        """Batches per process and step: as many as make `shards` with the processes at hand."""
        return -(-self.shards // self.job.training.world_size)
