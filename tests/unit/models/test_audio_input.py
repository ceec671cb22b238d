"""What a network takes of a sound, found by trying."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, set_seed

from hf_transfer.data.encode import make_encoder
from hf_transfer.data.sound_batches import AudioInput
from hf_transfer.errors import UserError
from hf_transfer.models.audio_input import read_input
from hf_transfer.tasks import find_task
from tests import sounds

TASK = find_task("audio-classification")


def _loaded(folder: Path) -> tuple[torch.nn.Module, object]:
    set_seed(0)
    model = AutoModelForAudioClassification.from_pretrained(folder)
    return model.eval(), AutoFeatureExtractor.from_pretrained(folder)


def test_one_size_is_found_with_the_seconds_that_are_heard(tmp_path: Path) -> None:
    whisper = read_input(*_loaded(sounds.save_whisper(tmp_path / "whisper")))
    assert whisper == AudioInput(None, seconds=1.0)
    ast = read_input(*_loaded(sounds.save_ast(tmp_path / "ast")))
    assert isinstance(ast, AudioInput)
    assert ast.seconds == pytest.approx(0.655, abs=0.011)  # 64 frames


@pytest.mark.parametrize(("norm", "padding"), [("layer", "right"), ("group", "none")])
def test_the_shortest_sound_can_be_learned_from(norm: str, padding: str, tmp_path: Path) -> None:
    model, extractor = _loaded(sounds.save_wav2vec2(tmp_path, norm))
    takes = read_input(model, extractor)
    assert isinstance(takes, AudioInput)
    assert takes.padding == padding
    # Ten positions, as SpecAugment hides so many: each 5 * 8 * 4 samples.
    assert 9 * 160 < takes.shortest <= 11 * 160
    encoder = make_encoder(TASK, extractor, model.config, takes=takes)
    sound = sounds.encoded(np.ones(1))
    (row,) = encoder.rows(_rows(sound))
    batch = encoder.collate([row])
    lengths = batch.pop("lengths", None)
    assert (lengths is None) == (padding == "right")
    model.train()
    model(**batch).loss.backward()
    assert batch["input_values"].shape == (1, takes.shortest)


def _rows(*stored: object) -> Dataset:
    return Dataset.from_list([{"audio": dict(sound), "label": 0} for sound in stored])


def test_trying_changes_nothing_of_the_model(tmp_path: Path) -> None:
    model, extractor = _loaded(sounds.save_wav2vec2(tmp_path))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    read_input(model, extractor)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_extractor_without_a_sampling_rate_is_refused(tmp_path: Path) -> None:
    model, _ = _loaded(sounds.save_wav2vec2(tmp_path / "wav2vec2"))
    extractor = AutoFeatureExtractor.from_pretrained(sounds.save_wav2vec2(tmp_path / "b"))
    extractor.sampling_rate = 0
    with pytest.raises(UserError, match="has the sampling rate 0"):
        read_input(model, extractor)
