"""Batches of sounds: what a feature extractor makes of the sounds of rows."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from datasets import Dataset

from hf_transfer.data.sounds import SOUNDS_VERSION, count_samples, read_sound

if TYPE_CHECKING:  # loading it takes two seconds
    from transformers import SequenceFeatureExtractor

log = logging.getLogger(__name__)

MAX_SECONDS_KEY = "max_seconds"  # our own in preprocessor_config.json
MAX_SECONDS = 30.0  # of a sound, where no run has said it
LIBRARIES = ("soundfile", "soxr")  # decode and resample sounds

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class AudioInput:
    """What a network takes of a sound (models/audio_input.py)."""

    # The side that changes no answer, or "none"; None: the extractor makes inputs of one size.
    padding: Literal["right", "none"] | None
    shortest: int = 1  # smallest number of samples; silence is added to shorter sounds
    seconds: float | None = None  # of which the extractor reads no more


@dataclass(frozen=True)
class SoundBatches:
    """A feature extractor, and how long the sounds are that it is given: the first `seconds`."""

    extractor: "SequenceFeatureExtractor"
    takes: AudioInput
    seconds: float
    # Samples of a sound -> positions of its mask, and how many of them are shown.
    _masks: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides what a sound becomes, except the sound itself."""
        return {
            **json.loads(self.extractor.to_json_string()),
            "class": type(self.extractor).__name__,
            "sounds": SOUNDS_VERSION,
            "seconds": self.seconds,
            "shortest": self.takes.shortest,
            **{name: version(name) for name in LIBRARIES},
        }

    def with_lengths(self, split: Dataset) -> Dataset:
        """A split with the number of samples of each sound, "length".

        The log says how many sounds are cut.
        """
        rate = self.extractor.sampling_rate
        counted = [count_samples(sound, rate, self.seconds) for sound in split["audio"]]
        cut = sum(is_cut for _, is_cut in counted)
        if cut:
            log.info(
                "%d of %d sounds are longer than %g s: their beginning is read",
                cut,
                len(split),
                self.seconds,
            )
        return split.add_column("length", [length for length, _ in counted])

    def read(self, rows: Rows) -> dict[str, torch.Tensor]:
        """What the network reads of rows, padded to the longest; with a mask if lengths differ."""
        rate = self.extractor.sampling_rate
        return self._extract([read_sound(row["audio"], rate, self.seconds) for row in rows])

    def masks(self, rows: Rows) -> dict[str, torch.Tensor]:
        """The mask of `read`, from lengths alone; none where all inputs have one size."""
        if self.takes.padding is None:
            return {}
        shown = torch.tensor([self._mask(row["length"])[1] for row in rows])
        positions = torch.arange(int(self.widths(rows).max()))
        return {"attention_mask": (positions < shown.unsqueeze(1)).int()}

    def widths(self, rows: Rows) -> torch.Tensor:
        """(rows,) numbers of positions of the mask of each sound alone."""
        return torch.tensor([self._mask(row["length"])[0] for row in rows])

    def _mask(self, length: int) -> tuple[int, int]:
        if length not in self._masks:
            (mask,) = self._extract([np.zeros(length, np.float32)])["attention_mask"]
            self._masks[length] = (len(mask), int(mask.sum()))
        return self._masks[length]

    def _extract(self, sounds: list[np.ndarray]) -> dict[str, torch.Tensor]:
        # Those that make inputs of one size pad by themselves.
        is_padded = self.takes.padding is not None
        options = {"padding": True, "return_attention_mask": True} if is_padded else {}
        shortest = self.takes.shortest
        padded = [np.pad(each, (0, max(0, shortest - len(each)))) for each in sounds]
        rate = self.extractor.sampling_rate
        return dict(self.extractor(padded, sampling_rate=rate, return_tensors="pt", **options))


def sound_batches(
    extractor: "SequenceFeatureExtractor", max_seconds: float | None, takes: AudioInput | None
) -> SoundBatches:
    """Batches by a checkpoint's extractor.

    Sounds are cut at `max_seconds`, by default where the extractor's own run cut them.
    """
    takes = takes or AudioInput("right")
    limits = (max_seconds or getattr(extractor, MAX_SECONDS_KEY, MAX_SECONDS), takes.seconds)
    return SoundBatches(extractor, takes, min(filter(None, limits)))
