"""All that predictions take, however the model was made."""

from dataclasses import dataclass
from typing import Any

from hf_transfer.data.encode import Encoder
from hf_transfer.record import ProblemType


@dataclass(frozen=True)
class Predictor:
    """A model, the encoder of its inputs, and its problem type.

    A run has one once it is trained, and so has a folder or a Hub id (inference.load_predictor).
    """

    model: Any
    encoder: Encoder
    problem_type: ProblemType
