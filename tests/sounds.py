"""Small sounds and tiny audio checkpoints for tests."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import transformers

RATE = 16_000
PITCHES = {"high": 900.0, "low": 200.0}  # Hz, of a class
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tone(pitch: float, seconds: float = 0.4, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """(samples,) a sine wave with a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * pitch * time) + rng.normal(0, 0.02, len(time))
    return wave.astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, **options: Any) -> Mapping[str, Any]:
    """A sound as it is stored: the bytes of a file, by default WAV of 16 bits."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **{"format": "WAV", **options})
    return {"bytes": buffer.getvalue(), "path": None}


def fill_sound_folder(root: Path, per_class: int = 20) -> Path:
    """WAV files by class folder, of several lengths and sampling rates."""
    rng = np.random.default_rng(0)
    for name, pitch in PITCHES.items():
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            rate = int(rng.choice([8_000, RATE, 44_100]))
            wave = tone(pitch * rng.uniform(0.9, 1.1), rng.uniform(0.25, 0.6), rate, number)
            soundfile.write(root / name / f"{number}.wav", wave, rate)
    return root


def save_wav2vec2(folder: Path, norm: str = "layer") -> Path:
    """A base model like wav2vec2's; with the norm "group" an answer depends on padding."""
    config = transformers.Wav2Vec2Config(
        **NARROW,
        intermediate_size=64,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        initializer_range=0.2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    return _save(transformers.Wav2Vec2Model, config, extractor, folder)


def save_whisper(folder: Path) -> Path:
    """A base model like Whisper's, which hears one second."""
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=40,
        max_source_positions=50,
        vocab_size=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        classifier_proj_size=16,
        init_std=0.2,
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=40, chunk_length=1)
    return _save(transformers.WhisperModel, config, extractor, folder)


def save_ast(folder: Path) -> Path:
    """A base model like the Audio Spectrogram Transformer, which hears two thirds of a second."""
    sizes = {"max_length": 64, "num_mel_bins": 32}
    config = transformers.ASTConfig(**NARROW, **sizes, intermediate_size=64, initializer_range=0.2)
    return _save(transformers.ASTModel, config, transformers.ASTFeatureExtractor(**sizes), folder)


def _save(kind: Any, config: Any, extractor: Any, folder: Path) -> Path:
    transformers.set_seed(0)
    kind(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
