"""recipes/audio_classification.py, from sounds in folders to a saved model that answers."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from hf_transfer.cli import main as cli
from hf_transfer.config.data import DataConfig
from hf_transfer.data.sounds import read_sound
from hf_transfer.data.sources import load_data
from hf_transfer.record import read_record
from tests import sounds
from tests.conftest import Outcome

Recipe = Callable[..., Outcome]

NETWORKS: dict[str, Callable[[Path], Path]] = {
    "wav2vec2": sounds.save_wav2vec2,
    "wav2vec2-group": lambda folder: sounds.save_wav2vec2(folder, "group"),
    "whisper": sounds.save_whisper,
    "ast": sounds.save_ast,
}
STRATEGIES = ("head", "full", "head_then_full", "top_layers", "lora", "scratch")
# Every network and every strategy once; the rest of the table is slow.
QUICK = {
    ("wav2vec2", "lora"),
    ("wav2vec2-group", "top_layers"),
    ("whisper", "head_then_full"),
    ("ast", "full"),
    ("ast", "scratch"),
}


@pytest.fixture(scope="session")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 high and 20 low tones, of several lengths and sampling rates."""
    return sounds.fill_sound_folder(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the folder of a tiny base model of NETWORKS."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = NETWORKS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return make


def _flags(model: Path, data: Path, out: Path, *more: str) -> tuple[object, ...]:
    quiet = ("--use_cpu", "--disable_tqdm", "true")
    words = ("--model_name_or_path", model, "--dataset_name", data, "--output_dir", out)
    return (*words, *quiet, *more)


@pytest.mark.parametrize("name", NETWORKS)
def test_tones_are_told_apart_and_the_saved_model_asked_alone_answers_as_recorded(
    name: str, recipe: Recipe, network: Callable[[str], Path], sound_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = recipe(
        "audio_classification",
        *_flags(network(name), sound_folder, out, "--strategy", "full"),
        *("--num_train_epochs", "12", "--learning_rate", "2e-3", "--baselines", "raw_inputs"),
    )
    assert ended.code == 0, ended.err
    record = read_record(out / "record.json")
    assert record.metrics["accuracy"].value >= 0.75
    assert record.baselines["raw_inputs"]["accuracy"].value >= 0.75
    assert record.model.padding == {"wav2vec2": "right", "wav2vec2-group": "none"}.get(name)
    assert ("depends on the padding" in ended.err) == (name == "wav2vec2-group")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert ("The answer to a sound depends on the padding" in card) == (name == "wav2vec2-group")
    _require_same_alone(out, sound_folder)


def _require_same_alone(out: Path, folder: Path) -> None:
    """Assert that each test row, asked alone and plainly, gives the record's log loss."""
    record = read_record(out / "record.json")
    data = load_data(DataConfig(str(folder)), "audio-classification", 0)
    model = AutoModelForAudioClassification.from_pretrained(out).eval()
    extractor = AutoFeatureExtractor.from_pretrained(out)
    rows = []
    for row in data.test:
        samples = read_sound(row["audio"], extractor.sampling_rate, extractor.max_seconds)
        inputs = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].double())
    loss = torch.nn.functional.cross_entropy(torch.stack(rows), torch.tensor(data.test["label"][:]))
    assert float(loss) == pytest.approx(record.metrics["log_loss"].value, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(name, strategy, marks=() if (name, strategy) in QUICK else pytest.mark.slow)
        for name in NETWORKS
        for strategy in STRATEGIES
    ],
)
def test_every_strategy_runs_on_every_network(
    name: str,
    strategy: str,
    recipe: Recipe,
    network: Callable[[str], Path],
    sound_folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    flags = _flags(network(name), sound_folder, out, "--strategy", strategy, "--max_steps", "2")
    ended = recipe("audio_classification", *flags)
    assert ended.code == 0, ended.err
    assert read_record(out / "record.json").strategy.used == strategy
    samples = sounds.tone(900)
    (best, _) = pipeline("audio-classification", model=str(out))(samples)
    assert best["label"] in sounds.PITCHES


@pytest.mark.parametrize("name", NETWORKS)
def test_the_frozen_layers_under_a_head_run_once(
    name: str, recipe: Recipe, network: Callable[[str], Path], sound_folder: Path, tmp_path: Path
) -> None:
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        flags = ("--strategy", "head", "--max_steps", "3", "--seed", seed)
        ended = recipe("audio_classification", *_flags(network(name), sound_folder, out, *flags))
        assert ended.code == 0, ended.err
        (phase,) = read_record(out / "record.json").phases
        found.append((phase.cache, phase.frozen_passes))
    assert found == [("miss", 1), ("hit", 0)]


def test_a_finished_head_of_one_layer_is_solved_on_stored_features(
    recipe: Recipe, network: Callable[[str], Path], sound_folder: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    start = _flags(network("wav2vec2-group"), sound_folder, first, "--max_steps", "2")
    assert recipe("audio_classification", *start, "--strategy", "full").code == 0
    again = _flags(first, sound_folder, second, "--strategy", "head")
    assert recipe("audio_classification", *again).code == 0
    (phase,) = read_record(second / "record.json").phases
    assert phase.solved is not None
    assert (phase.cache, phase.frozen_passes) == ("miss", 1)
    _require_same_alone(second, sound_folder)


def test_predict_reads_files_and_folders_of_sounds_and_refuses_what_is_none(
    recipe: Recipe,
    network: Callable[[str], Path],
    sound_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    flags = ("--strategy", "full", "--num_train_epochs", "12", "--learning_rate", "2e-3")
    assert (
        recipe(
            "audio_classification", *_flags(network("wav2vec2-group"), sound_folder, out, *flags)
        ).code
        == 0
    )

    def ask(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hf-transfer", "predict", str(out), *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    said = ask(sound_folder / "high", sound_folder / "low" / "3.wav")
    rows = [line.split("\t") for line in said.out.splitlines()]
    assert (said.code, len(rows)) == (0, 21)
    assert np.mean([label == "high" for _, label, _ in rows[:20]]) > 0.8
    (alone,) = (line for line in ask(sound_folder / "high" / "7.wav").out.splitlines())
    assert alone in said.out  # among 20 others of other lengths
    (tmp_path / "fake.wav").write_text("this is a text")
    (tmp_path / "empty").mkdir()
    for word, message in {
        "fake.wav": "is not a sound that can be used: the sound cannot be read",
        "gone.wav": "no file",
        "empty": "holds no sounds",
    }.items():
        refused = ask(tmp_path / word)
        assert refused.code == 2
        assert message in refused.err.splitlines()[-2]
        assert refused.err.splitlines()[-1].startswith("hint: ")


def test_long_sounds_are_cut_and_a_text_named_wav_is_left_out_and_both_are_said(
    recipe: Recipe, network: Callable[[str], Path], sound_folder: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    with_bad = sounds.fill_sound_folder(data)
    (with_bad / "low" / "notes.wav").write_text("this is a text")
    flags = ("--strategy", "full", "--max_steps", "2", "--max_seconds", "0.3")
    ended = recipe("audio_classification", *_flags(network("wav2vec2"), data, out, *flags))
    assert ended.code == 0, ended.err
    assert "low/notes.wav (the sound cannot be read: Format not recognised.)" in ended.err
    assert "sounds are longer than 0.3 s: their beginning is read" in ended.err
    (dropped,) = read_record(out / "record.json").dataset.dropped
    assert dropped.reason == "the sound cannot be read: Format not recognised."
    assert json.loads((out / "preprocessor_config.json").read_text())["max_seconds"] == 0.3


def _numbered(folder: Path, content: str) -> Path:
    folder.mkdir()
    with (folder / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["note", "label"])
        rows.writerows([content, "ab"[number % 2]] for number in range(40))
    return folder


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "a limit of no time": (("--max_seconds", "0"), "--max_seconds 0.0"),
    "a column that is not there": (("--audio_column", "x"), "unknown column 'x'"),
    "a flag of images": (("--image_column", "x"), "--image_column does not belong to audio"),
    "a flag of texts": (("--max_length", "9"), "--max_length does not belong to audio"),
    "an augmentation of images": (("--augmentation", "light"), "is for images"),
    "images": (("--dataset_name", "builtin:digits"), "which column holds the audio is not clear"),
    "a table of words": (("--dataset_name", "WORDS"), "which column holds the audio"),
    "no sounds": (("--dataset_name", "EMPTY"), "holds no sound that can be read: 1 files (.m4a)"),
    "an image checkpoint": (("--model_name_or_path", "VIT"), "was pretrained on image"),
    "no sampling rate": (("--model_name_or_path", "NO_RATE"), "has the sampling rate None"),
    "a wrong extractor": (("--model_name_or_path", "OTHER"), "does not take what its processor"),
    "sounds in no folders": (("--dataset_name", "FLAT"), "stand in no class folders"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_error_and_one_hint(
    name: str,
    recipe: Recipe,
    network: Callable[[str], Path],
    sound_folder: Path,
    tiny_vit: Path,
    tmp_path: Path,
) -> None:
    changed, message = WRONG[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.m4a").write_bytes(b"1")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.wav").write_bytes(sounds.encoded(sounds.tone(200))["bytes"])
    places = {
        "EMPTY": tmp_path / "empty",
        "FLAT": tmp_path / "flat",
        "WORDS": _numbered(tmp_path / "words", "a word"),
        "VIT": tiny_vit,
        "NO_RATE": sounds.save_wav2vec2(tmp_path / "no_rate"),
        "OTHER": sounds.save_whisper(tmp_path / "other"),
    }
    for model, key, value in (("no_rate", "sampling_rate", None), ("other", "feature_size", 13)):
        path = tmp_path / model / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    flags = _flags(network("wav2vec2"), sound_folder, tmp_path / "run", "--max_steps", "1")
    ended = recipe("audio_classification", *flags, *(places.get(word, word) for word in changed))
    assert ended.code == 2, ended.err
    error, hint = ended.err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")
