"""Job: a checkpoint, the data it learns from, and how both meet; made once and handed on."""

from dataclasses import dataclass
from typing import Any

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.encode import Encoder, make_encoder
from hf_transfer.data.sources import Data
from hf_transfer.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Job:
    """What all steps from choosing a plan to running it share."""

    checkpoint: Checkpoint
    data: Data
    encoder: Encoder  # of the checkpoint's processor
    training: TrainingConfig

    @property
    def model(self) -> Any:
        """The plain AutoModelFor* model."""
        return self.checkpoint.model

    @property
    def labels(self) -> list[Any]:
        """The labels of the training rows."""
        return list(self.data.train["label"][:])


def make_job(checkpoint: Checkpoint, data: Data, training: TrainingConfig) -> Job:
    """The job of fine-tuning a checkpoint on data."""
    config = checkpoint.model.config
    takes = checkpoint.text_input
    encoder = make_encoder(data.task, checkpoint.processor, config, data.max_length, takes)
    return Job(checkpoint, data, encoder, training)
