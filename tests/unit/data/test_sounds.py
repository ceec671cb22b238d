"""From a file or bytes to mono samples at a model's sampling rate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hf_transfer.data.sounds import (
    UnreadableSoundError,
    count_samples,
    read_sound,
    spectrum_features,
    why_unreadable,
)
from tests.sounds import RATE, encoded, tone

SECOND = tone(440, 1.0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"subtype": "PCM_U8"}, 1 / 127),
        ({"subtype": "PCM_16"}, 1e-4),
        ({"subtype": "PCM_24"}, 1e-6),
        ({"subtype": "PCM_32"}, 1e-6),
        ({"subtype": "FLOAT"}, 1e-7),
        ({"format": "FLAC"}, 1e-4),
        ({"format": "OGG"}, 0.1),
        ({"format": "MP3"}, 0.1),
    ],
)
def test_formats_and_depths_give_the_same_levels(options: dict[str, str], error: float) -> None:
    read = read_sound(encoded(SECOND, **options), RATE, 30)
    assert (read.dtype, read.shape) == (np.float32, (RATE,))
    assert np.abs(read - SECOND).max() <= error


def test_a_file_reads_as_its_bytes_do(tmp_path: Path) -> None:
    sound = encoded(SECOND)
    (tmp_path / "a.wav").write_bytes(sound["bytes"])
    stored = {"bytes": None, "path": str(tmp_path / "a.wav")}
    assert np.array_equal(read_sound(stored, RATE, 30), read_sound(sound, RATE, 30))


def test_two_channels_become_their_mean() -> None:
    stereo = np.stack([SECOND, np.zeros_like(SECOND)], axis=1)
    read = read_sound(encoded(stereo, subtype="FLOAT"), RATE, 30)
    assert np.allclose(read, SECOND / 2, atol=1e-6)


@pytest.mark.parametrize("own", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_a_sine_wave_of_another_rate_stays_the_same_wave(own: int) -> None:
    time = np.arange(own) / own
    wave = encoded(np.sin(2 * np.pi * 1000 * time), own, subtype="FLOAT")
    expected = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    read = read_sound(wave, RATE, 30)
    inner = slice(800, -800)  # the filter knows nothing beyond the ends
    assert np.abs(read[inner] - expected[inner]).max() < 1e-3


def test_what_is_above_the_new_rate_is_not_folded_down() -> None:
    own = 48_000
    wave = encoded(np.sin(2 * np.pi * 15_000 * np.arange(own) / own), own, subtype="FLOAT")
    assert np.abs(read_sound(wave, RATE, 30)[800:-800]).max() < 1e-3


@pytest.mark.parametrize("own", [8_000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("samples", [1, 2, 3, 1_000, 12_345])
def test_the_header_tells_the_number_of_samples_that_are_read(own: int, samples: int) -> None:
    sound = encoded(np.zeros(samples), own)
    for seconds in (0.05, 30.0):
        count, is_cut = count_samples(sound, RATE, seconds)
        assert len(read_sound(sound, RATE, seconds)) == count
        assert is_cut == (samples > int(seconds * own))
        assert count >= 1


def test_of_an_hour_the_first_seconds_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_U8") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 8_000))
    sound = {"bytes": None, "path": str(path)}
    assert count_samples(sound, RATE, 2.5) == (40_000, True)
    assert read_sound(sound, RATE, 2.5).shape == (40_000,)
    assert why_unreadable(sound, 2.5) is None


def test_silence_and_one_sample_are_sounds() -> None:
    for samples in (np.zeros(RATE), np.ones(1)):
        sound = encoded(samples)
        assert why_unreadable(sound) is None
        assert np.isfinite(spectrum_features(read_sound(sound, RATE, 30))).all()


def _with_rate(rate: int) -> bytes:
    """A WAV file whose header names another sampling rate."""
    content = bytearray(encoded(SECOND)["bytes"])
    content[24:28] = rate.to_bytes(4, "little")
    return bytes(content)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"bytes": None, "path": None}, "no sound"),
    "empty": ({"bytes": b"", "path": "a.wav"}, "the sound's file is empty"),
    "text": (
        {"bytes": b"this is a text", "path": "a.wav"},
        "the sound cannot be read: Format not recognised.",
    ),
    "missing": ({"bytes": None, "path": "/nowhere/a.wav"}, "the sound's file is missing"),
    "folder": ({"bytes": None, "path": "/"}, "the sound's file cannot be read: Is a directory"),
    "no samples": (dict(encoded(np.zeros(0))), "the sound has no samples"),
    "not finite": (
        dict(encoded(np.full(9, np.nan), subtype="FLOAT")),
        "the sound has samples that are not finite",
    ),
    "a rate of 1 Hz": ({"bytes": _with_rate(1), "path": None}, "a sampling rate of 1 Hz"),
    "half of a FLAC file": (
        {"bytes": encoded(SECOND, format="FLAC")["bytes"][:9000], "path": None},
        "the sound cannot be read: ",
    ),
    "half of an MP3 file": (
        {"bytes": encoded(SECOND, format="MP3")["bytes"][:2000], "path": None},
        "the sound cannot be read to its end",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_has_a_reason_that_names_no_file(name: str) -> None:
    sound, expected = BAD[name]
    reason = why_unreadable(sound)
    assert reason is not None
    assert reason.startswith(expected)
    assert "a.wav" not in reason
    if name != "nothing":
        with pytest.raises(UnreadableSoundError):
            read_sound(sound, RATE, 30)


def test_spectra_tell_pitches_apart_at_any_length() -> None:
    low, lower, high = (
        spectrum_features(tone(pitch, seconds))
        for pitch, seconds in ((200, 0.3), (210, 0.9), (900, 0.3))
    )
    assert low.shape == lower.shape == high.shape
    assert np.linalg.norm(low - lower) < np.linalg.norm(low - high) / 2
