"""Regression labels on a unit scale while training; the output layer gets their units back."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hf_transfer.data.encode import Collate, Encoder
from hf_transfer.data.sources import Data
from hf_transfer.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class LabelScale:
    """Labels are trained on as (label - offset) / factor.

    That is the size that learning rates and new weights are made for.
    """

    offset: float = 0.0
    factor: float = 1.0


def fit_label_scale(data: Data, checkpoint: Checkpoint) -> LabelScale:
    """Mean and standard deviation of the training labels of a regression; else the identity.

    Where the output layer has no bias, the saved model could not add a mean: the offset is 0.
    """
    if data.problem_type != "regression":
        return LabelScale()
    labels = np.asarray(data.train["label"][:], dtype=np.float64)
    has_bias = any(name.endswith("bias") for name in checkpoint.output_layer)
    offset = float(labels.mean()) if has_bias else 0.0
    deviation = float(np.sqrt(np.mean((labels - offset) ** 2)))
    return LabelScale(offset, deviation or 1.0)  # labels that are all the same have none


def scale_labels(encoder: Encoder, scale: LabelScale) -> Encoder:
    """The encoder, with scaled labels in its batches."""
    if scale == LabelScale():
        return encoder

    def scaled(collate: Collate) -> Collate:
        def collate_scaled(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(rows)
            return {**batch, "labels": (batch["labels"] - scale.offset) / scale.factor}

        return collate_scaled

    return replace(encoder, collate=scaled(encoder.collate), light=scaled(encoder.light))


def scale_loaded_head(checkpoint: Checkpoint, scale: LabelScale) -> None:
    """Make a head from the checkpoint predict scaled labels, as a new one learns to."""
    if scale != LabelScale() and not checkpoint.new_parameters:
        _transform_outputs(checkpoint, LabelScale(-scale.offset / scale.factor, 1 / scale.factor))


def unscale_head(checkpoint: Checkpoint, scale: LabelScale) -> None:
    """Make the model predict labels in their own units: the scale goes into the output layer."""
    if scale != LabelScale():
        _transform_outputs(checkpoint, scale)


def _transform_outputs(checkpoint: Checkpoint, scale: LabelScale) -> None:
    """Change the output layer so that it returns its outputs * factor + offset."""
    with torch.no_grad():
        for name in checkpoint.output_layer:
            parameter = checkpoint.model.get_parameter(name)
            parameter.mul_(scale.factor)
            if name.endswith("bias"):
                parameter.add_(scale.offset)
