"""Job: a checkpoint, the data it learns from, and how both meet; made once and handed on."""

from dataclasses import dataclass
from typing import Any

import torch

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.encode import Encoder, TextInput, make_encoder
from hf_transfer.data.prepared import decoding_workers
from hf_transfer.data.sources import Data
from hf_transfer.data.tokens import with_stored_tokens
from hf_transfer.errors import UserError, one_line
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


def make_job(
    checkpoint: Checkpoint,
    data: Data,
    training: TrainingConfig,
    cache: CacheConfig | None = None,
) -> Job:
    """The job of fine-tuning a checkpoint on data; with a cache, texts are tokenized once.

    Raises UserError if the network does not take what its processor makes of an input, and for rows
    that change whenever they are read.
    """
    _require_rows_that_stay(data)
    config = checkpoint.model.config
    takes = checkpoint.takes
    encoder = make_encoder(data.task, checkpoint.processor, config, data.max_length, takes)
    if data.prepared:
        encoder = data.prepared.serve(encoder)
    # Where words have labels, windows are more than the rows.
    if cache and isinstance(takes, TextInput) and not data.task.labels_words:
        encoder = with_stored_tokens(encoder, checkpoint.processor, takes.vocabulary, cache)
    if training.dataloader_num_workers is None and encoder.decodes:
        training = training.changed(dataloader_num_workers=decoding_workers())
    job = Job(checkpoint, data, encoder, training)
    if not encoder.by_length:  # others were tried when `takes` was found
        _require_answer(job)
    return job


def _require_rows_that_stay(data: Data) -> None:
    for split, rows in data.splits.items():
        if rows.format["type"] == "custom":
            raise UserError(
                f"the split {split!r} has a transform (with_transform), which is not seen where "
                "rows are computed once",
                "change the rows with map, and images at random with --augmentation",
            )


@torch.inference_mode()
def _require_answer(job: Job) -> None:
    """Raise UserError unless the network answers to the first row."""
    first = next(iter(job.data.splits.values())).select([0])
    model = job.model.eval()
    device = next(model.parameters()).device
    try:
        inputs = job.encoder.batch(list(job.encoder.rows(first)))
        inputs.pop("labels")
        model(**{name: tensor.to(device) for name, tensor in inputs.items()})
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{job.checkpoint.provenance.id!r} does not take what its processor makes of "
            f"{first[0]['id']}: {one_line(error)}",
            "change size, mean or std in its preprocessor_config.json to what the network takes",
        ) from error
