"""What a network takes of a sound: padding and length; found by trying, once per model."""

import logging
from typing import Any, Literal

import numpy as np
import torch
from transformers import SequenceFeatureExtractor

from hf_transfer.data.encode import TextInput
from hf_transfer.data.sound_batches import AudioInput
from hf_transfer.errors import UserError, one_line
from hf_transfer.models.text_input import MAX_DIFFERENCE, read_head_input, read_text_input

log = logging.getLogger(__name__)

SHORT, LONG = 0.4, 0.9  # seconds of two sounds: the first is padded beside the second
LONGEST = 120  # seconds, up to which a processor that cuts sounds is tried
STEP = 0.01  # seconds, to which this length is found


def read_input(model: Any, processor: Any) -> TextInput | AudioInput | None:
    """What a model takes of a text or a sound; None for images."""
    if isinstance(processor, SequenceFeatureExtractor):
        return read_audio_input(model, processor)
    return read_text_input(model, processor)


def read_audio_input(model: Any, extractor: Any) -> AudioInput:
    """What a model takes of a sound.

    Raises UserError if the extractor has no sampling rate, makes no mask for sounds of different
    lengths, or makes what the model does not take.
    """
    rate = getattr(extractor, "sampling_rate", None)
    if not isinstance(rate, int) or rate <= 0:
        raise UserError(
            f"the checkpoint's {type(extractor).__name__} has the sampling rate {rate}",
            "give its preprocessor_config.json the sampling_rate of pretraining",
        )
    try:
        short, long = (_extract(extractor, [_noise(seconds, rate)]) for seconds in (SHORT, LONG))
        if all(short[name].shape == long[name].shape for name in short):
            return AudioInput(None, seconds=_longest(extractor))
        padding = _find_padding(model, extractor)
        shortest = _shortest(model, extractor)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError(
            f"{type(model).__name__} does not take what its {type(extractor).__name__} makes of a "
            f"sound: {one_line(error)}",
            "take the preprocessor_config.json of its pretraining",
        ) from error
    if padding == "none":
        log.warning(
            "%s: the answer to a sound depends on the padding beside it: batches are computed in "
            "parts of one length",
            type(model).__name__,
        )
    return AudioInput(padding, shortest)


def _noise(seconds: float, rate: int) -> np.ndarray:
    """Random samples around a mean that is not zero, the first ones of a longer sound the same."""
    return np.random.default_rng(0).normal(0.05, 0.1, int(seconds * rate)).astype(np.float32)


def _extract(extractor: Any, sounds: list[np.ndarray], **options: Any) -> dict[str, torch.Tensor]:
    made = extractor(sounds, sampling_rate=extractor.sampling_rate, return_tensors="pt", **options)
    return dict(made)


def _padded(extractor: Any, sounds: list[np.ndarray]) -> dict[str, torch.Tensor]:
    made = _extract(extractor, sounds, padding=True, return_attention_mask=True)
    if "attention_mask" not in made:
        raise ValueError("it makes no attention_mask")
    return made


def _find_padding(model: Any, extractor: Any) -> Literal["right", "none"]:
    """The right where padding changes nothing of what the head reads, else "none"."""
    rate = extractor.sampling_rate
    short, long = _noise(SHORT, rate), _noise(LONG, rate)
    alone = read_head_input(model, _padded(extractor, [short]))
    beside = read_head_input(model, _padded(extractor, [short, long]))
    difference = (beside[0] - alone[0]).norm() / alone[0].norm().clamp(min=1e-12)
    return "right" if difference <= MAX_DIFFERENCE else "none"


def _shortest(model: Any, extractor: Any) -> int:
    """The smallest number of samples that the network takes, in training too.

    SpecAugment, which many networks have in their config, hides `mask_time_length` positions and
    fails where there are fewer.
    """
    config = model.config
    masks = getattr(config, "apply_spec_augment", False) and config.mask_time_prob > 0
    positions = config.mask_time_length if masks else 1
    too_few, enough = 0, int(SHORT * extractor.sampling_rate)
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        if _answers(model, extractor, count, positions):
            enough = count
        else:
            too_few = count
    return enough


def _answers(model: Any, extractor: Any, count: int, positions: int) -> bool:
    try:
        inputs = _padded(extractor, [np.ones(count, np.float32)])
        device = next(model.parameters()).device
        with torch.inference_mode():
            outputs = model(
                **{name: tensor.to(device) for name, tensor in inputs.items()},
                output_hidden_states=True,
            )
    except (RuntimeError, ValueError, IndexError):
        return False
    return bool(outputs.hidden_states[0].shape[1] >= positions)


def _longest(extractor: Any) -> float | None:
    """Seconds at which an extractor of inputs of one size cuts sounds; None if not found."""
    rate = extractor.sampling_rate
    whole = _extract(extractor, [_noise(LONGEST, rate)])
    low, high = 0, int(LONGEST / STEP)
    while high - low > 1:
        middle = (low + high) // 2
        cut = _extract(extractor, [_noise(middle * STEP, rate)])
        if all(torch.equal(cut[name], whole[name]) for name in whole):
            high = middle
        else:
            low = middle
    return high * STEP if high < LONGEST / STEP else None
