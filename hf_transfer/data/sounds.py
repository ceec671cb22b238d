"""Sounds: what an audio file holds, as mono samples at the sampling rate of a model."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import UserError

if TYPE_CHECKING:  # an extra
    from datasets import Dataset
    from soundfile import SoundFile

Sound = Mapping[str, Any]  # "bytes" and "path" of a file, one of them None

NO_SOUND = {"bytes": None, "path": None}
SOUNDS_VERSION = 1  # of what read_sound does: cached activations of another version do not serve
RATES = (1_000, 768_000)  # samples a second; a header that names others is damaged
FRAME = 400  # samples of a short-time spectrum, as those of speech models: 25 ms at 16 kHz
SILENCE = 1e-10  # power that is added before a logarithm: -100 dB


class UnreadableSoundError(Exception):
    """Why a sound cannot be used; names no file."""


def read_sound(sound: Sound, rate: int, max_seconds: float) -> np.ndarray:
    """The first `max_seconds` of a sound: (samples,) float32, mono, `rate` samples a second.

    Channels are averaged, levels of 8 to 32 bits lie between -1 and 1. Raises UnreadableSoundError
    where no sound can be read, and UserError where soundfile and soxr are not installed.
    """
    with _open(sound) as file:
        count = int(min(file.frames, max_seconds * file.samplerate))
        samples = _decode(file, count)
        return _resample(samples, file.samplerate, rate)


def count_samples(sound: Sound, rate: int, max_seconds: float) -> tuple[int, bool]:
    """The number of samples that read_sound returns, by the file's header; whether it cuts any."""
    with _open(sound) as file:
        count = int(min(file.frames, max_seconds * file.samplerate))
        return _resampled_count(count, file.samplerate, rate), count < file.frames


def why_unreadable(sound: Sound, max_seconds: float = 30.0) -> str | None:
    """The reason why a sound cannot be used, or None."""
    if sound["bytes"] is None and sound["path"] is None:
        return "no sound"
    try:
        with _open(sound) as file:
            _decode(file, int(min(file.frames, max_seconds * file.samplerate)))
    except UnreadableSoundError as reason:
        return str(reason)
    return None


def sound_facts(split: "Dataset", max_seconds: float) -> list[tuple[str | None, None]]:
    """Of each sound of a split, why it cannot be used, or None, and None; empty without sounds."""
    if "audio" not in split.features:
        return []
    stored = split.with_format("arrow").iter(100)
    sounds = (sound for table in stored for sound in table["audio"].to_pylist())
    return [(why_unreadable(sound or NO_SOUND, max_seconds), None) for sound in sounds]


def spectrum_features(samples: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of a log power spectrum: (2 * frequencies,)."""
    from scipy.signal import stft

    padded = np.pad(samples, (0, max(0, FRAME - len(samples))))
    power = np.abs(stft(padded, nperseg=FRAME)[2]) ** 2  # (frequencies, frames)
    levels = np.log10(power + SILENCE)
    return np.concatenate([levels.mean(1), levels.std(1)])


def require_audio_packages() -> None:
    """Raise UserError unless soundfile and soxr are installed."""
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: soundfile without its library
        raise UserError(
            "sounds are read with soundfile and soxr, which are not installed",
            "pip install hf-transfer-learning[audio]",
        ) from error


@contextmanager
def _open(sound: Sound) -> Iterator["SoundFile"]:
    """An open audio file. Raises UnreadableSoundError in place of the errors of libsndfile."""
    require_audio_packages()
    import soundfile

    content = sound["bytes"]
    if content is not None and not content:
        raise UnreadableSoundError("the sound's file is empty")
    try:
        # The path is opened here: libsndfile's error would not tell a missing file from others.
        with _binary(sound) as stream, soundfile.SoundFile(stream) as file:
            _require_usable(file)
            yield file
    except FileNotFoundError as error:
        raise UnreadableSoundError("the sound's file is missing") from error
    except OSError as error:
        # The complete text of the error would name the path.
        raise UnreadableSoundError(f"the sound's file cannot be read: {error.strerror}") from error
    except soundfile.LibsndfileError as error:
        raise UnreadableSoundError(f"the sound cannot be read: {error.error_string}") from error


def _binary(sound: Sound) -> io.BufferedIOBase:
    if sound["bytes"] is not None:
        return io.BytesIO(sound["bytes"])
    return open(sound["path"], "rb")  # noqa: PTH123 - closed by _open


def _require_usable(file: "SoundFile") -> None:
    lowest, highest = RATES
    if not lowest <= file.samplerate <= highest:
        raise UnreadableSoundError(f"a sampling rate of {file.samplerate} Hz")
    if file.frames == 0:
        raise UnreadableSoundError("the sound has no samples")


def _decode(file: "SoundFile", count: int) -> np.ndarray:
    """The first `count` samples (one or more), mono. Raises UnreadableSoundError if some lack."""
    samples = file.read(max(1, count), dtype="float32", always_2d=True)
    if len(samples) < count:
        raise UnreadableSoundError("the sound cannot be read to its end")
    if not np.isfinite(samples).all():
        raise UnreadableSoundError("the sound has samples that are not finite")
    return samples.mean(1) if samples.shape[1] > 1 else samples[:, 0]


def _resampled_count(count: int, own: int, rate: int) -> int:
    return max(1, round(max(1, count) * rate / own))


def _resample(samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    if own == rate:
        return samples
    import soxr

    made = soxr.resample(samples, own, rate, quality="HQ")
    count = _resampled_count(len(samples), own, rate)
    return np.pad(made[:count], (0, max(0, count - len(made))))
