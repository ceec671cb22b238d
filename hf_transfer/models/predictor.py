"""All that predictions take, however the model was made."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_transfer.data.encode import Encoder
from hf_transfer.models.thresholds import read_thresholds
from hf_transfer.record import ProblemType


@dataclass(frozen=True)
class Predictor:
    """A model, the encoder of its inputs, and its problem type.

    A run has one once it is trained, and so has a folder or a Hub id (inference.load_predictor).
    """

    model: Any
    encoder: Encoder
    problem_type: ProblemType

    @property
    def thresholds(self) -> np.ndarray | None:
        """(labels,) the probabilities above which labels are predicted; None: 0.5, or no labels."""
        if self.problem_type != "multi_label_classification":
            return None
        return read_thresholds(self.model.config)
