"""Every audio architecture: a sound alone and beside a longer one, in the batches that training and evaluation make."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Audio, Dataset

from hf_transfer.config.cache import CacheConfig
from hf_transfer.data.encode import make_encoder
from hf_transfer.frozen.features import compute_features
from hf_transfer.frozen.forward_pass import FrozenLayers
from hf_transfer.frozen.replay import replay_collate, replay_rows
from hf_transfer.frozen.split import UnsplittableError, split_model
from hf_transfer.models.audio_input import read_audio_input
from hf_transfer.models.layers import layer_map
from hf_transfer.models.unpadded import logits_of
from hf_transfer.tasks import find_task
from tests.architectures.tiny import tiny_config
from tests.sounds import encoded

TASK = find_task("audio-classification")
NORMS = ("group", "layer")  # of the convolutions of wav2vec2 and its relatives
# Of one size by their extractors; wav2vec2-bert reads frames that have a mask.
EXTRACTORS: dict[str, Callable[[Any], Any]] = {
    "audio-spectrogram-transformer": lambda config: transformers.ASTFeatureExtractor(
        num_mel_bins=config.num_mel_bins, max_length=config.max_length
    ),
    "whisper": lambda config: transformers.WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, chunk_length=1
    ),
    "wav2vec2-bert": lambda config: transformers.SeamlessM4TFeatureExtractor(
        num_mel_bins=config.feature_projection_input_dim // 2
    ),
}
CHANGES = {"whisper": {"max_source_positions": 50}}  # of one second
# architecture -> what is found, all others: "right". Their convolutions or norms over time see what is beside a sound.
PADDING = {
    "audio-spectrogram-transformer": None,
    "whisper": None,
    "data2vec-audio": "none",
    "sew": "none",
    "sew-d": "none",
    "wav2vec2-conformer": "none",
}


def _cases() -> list[tuple[str, str | None]]:
    mapping = transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING
    cases: list[tuple[str, str | None]] = []
    for name in sorted(mapping._model_mapping):
        has_norm = hasattr(tiny_config(name), "feat_extract_norm")
        cases += [(name, norm) for norm in NORMS] if has_norm else [(name, None)]
    return cases


def _model(name: str, norm: str | None) -> Any:
    changes = {"feat_extract_norm": norm} if norm else {}
    transformers.set_seed(0)
    model = TASK.model_class.from_config(tiny_config(name, **changes, **CHANGES.get(name, {})))
    with torch.no_grad():  # some as they are first made answer the same to everything
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def _extractor(name: str, model: Any) -> Any:
    make = EXTRACTORS.get(name, lambda _: transformers.Wav2Vec2FeatureExtractor())
    return make(model.config)


@pytest.fixture(scope="module")
def sounds() -> Dataset:
    """Six sounds of 50 to 900 ms, two of them of one length, one of them silent."""
    rng = np.random.default_rng(0)
    lengths = (800, 4_801, 4_801, 9_000, 14_400, 3_000)
    stored = [dict(encoded(rng.normal(0.05, 0.1, length))) for length in lengths]
    stored[-1] = dict(encoded(np.zeros(lengths[-1])))
    return Dataset.from_dict({"audio": stored, "label": [0, 1] * 3})


@pytest.mark.parametrize(("name", "norm"), _cases())
def test_a_sound_alone_and_in_a_batch_gives_the_same_logits(
    name: str, norm: str | None, sounds: Dataset, record_property: Callable[[str, object], None]
) -> None:
    model = _model(name, norm)
    extractor = _extractor(name, model)
    takes = read_audio_input(model, extractor)
    encoder = make_encoder(TASK, extractor, model.config, takes=takes)
    rows = list(encoder.rows(sounds))

    def logits(rows: list[Any], **changes: Any) -> torch.Tensor:
        batch = encoder.collate(rows)
        batch.pop("labels")
        with torch.no_grad():
            return logits_of(model, {**batch, **changes})

    alone = torch.cat([logits([row]) for row in rows])
    together = logits(rows)
    whole = torch.tensor([max(row.get("length", 1) for row in rows)] * len(rows))
    plain = logits(rows, lengths=whole) if takes.padding == "none" else together
    ours = float((alone - together).abs().max())
    beside = float((alone - plain).abs().max())
    record_property(
        "sounds",
        f"{name} ({norm or '-'}): padding {encoder.padding}, {beside:.0e} padded, {ours:.0e} ours",
    )
    expected = "none" if norm == "group" else PADDING.get(name, "right")
    assert encoder.padding == expected
    assert ours <= 1e-4
    assert len({tuple(row.tolist()) for row in alone.round(decimals=4)}) >= 5  # they differ


@pytest.mark.parametrize(("name", "norm"), _cases())
def test_activations_of_sounds_of_several_lengths_give_what_the_whole_gives(
    name: str, norm: str | None, sounds: Dataset, record_property: Callable[[str, object], None]
) -> None:
    model = _model(name, norm)
    extractor = _extractor(name, model)
    takes = read_audio_input(model, extractor)
    encoder = make_encoder(TASK, extractor, model.config, takes=takes)
    rows = encoder.rows(sounds).cast_column("audio", Audio(decode=False))
    try:
        split = split_model(model, len(layer_map(model).stages) - 1)
        layers = FrozenLayers(split, frozenset(), encoder, batch_size=2, quiet=True)
        features = compute_features(layers, rows, CacheConfig(cache_frozen=False), in_memory=True)
    except UnsplittableError as reason:
        record_property("sounds", f"{name} ({norm or '-'}): run whole: {reason}")
        return
    assert features is not None
    replayed = replay_collate(encoder, [[features]])(list(replay_rows(rows, 0)))
    whole = encoder.collate(list(rows))
    del replayed["labels"], whole["labels"]
    with torch.no_grad():
        expected = logits_of(model, whole)
        with split.replaying():
            assert torch.allclose(logits_of(model, replayed), expected, atol=1e-4)


def test_all_12_architectures_were_tried() -> None:
    assert len({name for name, _ in _cases()}) >= 12
