"""A regression learns its numbers on a unit scale, and its output layer gives them back on their own."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hf_transfer.data.encode import Collate, Encoder
from hf_transfer.data.sources import Data
from hf_transfer.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Scale:
    """Training sees (number - offset) / factor: the size that learning rates and new weights are made for."""

    offset: float = 0.0
    factor: float = 1.0


def find_scale(data: Data, checkpoint: Checkpoint) -> Scale:
    """Mean and deviation of a regression's training numbers; one that changes nothing for the other problem types.

    Where the output layer has no bias, the saved model could not add a mean: the numbers are divided only.
    """
    if data.problem_type != "regression":
        return Scale()
    numbers = np.asarray(data.train["label"][:], dtype=np.float64)
    has_bias = any(name.endswith("bias") for name in checkpoint.output_layer)
    offset = float(numbers.mean()) if has_bias else 0.0
    deviation = float(np.sqrt(np.mean((numbers - offset) ** 2)))
    return Scale(offset, deviation or 1.0)  # numbers that are all the same have none


def scale_labels(encoder: Encoder, scale: Scale) -> Encoder:
    """The encoder, its batches with their labels on the scale."""
    if scale == Scale():
        return encoder

    def scaled(collate: Collate) -> Collate:
        def on_scale(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(rows)
            return {**batch, "labels": (batch["labels"] - scale.offset) / scale.factor}

        return on_scale

    return replace(encoder, collate=scaled(encoder.collate), light=scaled(encoder.light))


def scale_kept_head(checkpoint: Checkpoint, scale: Scale) -> None:
    """Let a head that was kept begin on the scale, as a new one does."""
    if scale != Scale() and not checkpoint.new_parameters:
        _change(checkpoint, Scale(-scale.offset / scale.factor, 1 / scale.factor))


def unscale(checkpoint: Checkpoint, scale: Scale) -> None:
    """Let the model answer in the numbers' own units: the scale goes into the weights of its output layer."""
    if scale != Scale():
        _change(checkpoint, scale)


def _change(checkpoint: Checkpoint, scale: Scale) -> None:
    with torch.no_grad():
        for name in checkpoint.output_layer:
            parameter = checkpoint.model.get_parameter(name)
            parameter.mul_(scale.factor)
            if name.endswith("bias"):
                parameter.add_(scale.offset)
