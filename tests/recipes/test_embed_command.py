"""`hf-transfer embed` and `embed`: vectors of images, texts, sounds and words, labelled or not."""

import csv
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    ViTImageProcessor,
    set_seed,
)

from hf_transfer import embed, load_predictor
from hf_transfer.cli import main as cli
from tests.conftest import Outcome
from tests.sounds import fill_sound_folder, save_wav2vec2

Embed = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Embed:
    """A function that runs `embed` with words."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hf-transfer", "embed", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logging.getLogger("hf_transfer").handlers.clear()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def _read(path: Path, ended: Outcome) -> tuple[list[str], list[object], np.ndarray]:
    assert ended.code == 0, ended.err
    columns = pyarrow.parquet.read_table(path).to_pydict()
    return columns["id"], columns.get("label", []), np.array(columns["vector"], np.float32)


def _image_outputs(model: Path, files: list[Path]) -> dict[str, np.ndarray]:
    """What transformers itself computes: the state of the first token, and the mean by layer."""
    network = AutoModelForImageClassification.from_pretrained(model).eval()
    processor = ViTImageProcessor.from_pretrained(model)
    pixels = processor([Image.open(file) for file in files], return_tensors="pt")
    with torch.no_grad():
        outputs = network.vit(**pixels, output_hidden_states=True)
    means = {f"{n}": state.mean(1) for n, state in enumerate(outputs.hidden_states)}
    found = {"head": outputs.last_hidden_state[:, 0], **means}
    return {name: tensor.numpy() for name, tensor in found.items()}


def test_images_have_the_vector_that_the_head_reads_and_the_second_time_it_is_stored(
    run: Embed, tiny_vit: Path, picture_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "features.parquet"
    ended = run(tiny_vit, picture_folder, "--output", output)
    ids, labels, vectors = _read(output, ended)
    assert ids == [f"train/{number}" for number in range(80)]
    files = pyarrow.parquet.read_table(output).to_pydict()["file"]
    assert [Path(file).parent.name for file in files] == labels
    assert sorted(set(labels)) == ["bright", "dark"]
    assert "80 vectors of 16 numbers, what the head reads: computed now (miss)" in ended.err
    expected = _image_outputs(tiny_vit, [picture_folder / file for file in files])["head"]
    assert np.allclose(vectors, expected, atol=1e-5)
    again = run(tiny_vit, picture_folder, "--output", output)
    assert np.array_equal(_read(output, again)[2], vectors)
    assert "from the store (hit)" in again.err


@pytest.mark.parametrize("layer", ["1", "layer 1", "2"])
def test_a_layer_gives_the_mean_over_all_positions(
    run: Embed, tiny_vit: Path, tmp_path: Path, layer: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"{number}.png" for number in range(3)]
    for file, each in zip(files, pixels, strict=True):
        Image.fromarray(each).save(file)
    output = tmp_path / "features.parquet"
    ended = run(tiny_vit, tmp_path / "images", "--layer", layer, "--output", output)
    _, labels, vectors = _read(output, ended)
    assert labels == []  # images in no class folder have none
    assert pyarrow.parquet.read_table(output)["file"].to_pylist() == ["0.png", "1.png", "2.png"]
    expected = _image_outputs(tiny_vit, files)[layer[-1]]
    assert np.allclose(vectors, expected, atol=1e-5)
    assert f"the mean over all positions of what layer {layer[-1]} returns" in ended.err


def _write_texts(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return path


TEXTS = ["the red cat sleeps", "a dog", "bird", "the green bird sings is a cat the blue dog"]


def test_texts_without_labels_have_the_mean_over_their_own_tokens(
    run: Embed, tiny_bert: Path, tmp_path: Path
) -> None:
    output = tmp_path / "features.npz"
    table = _write_texts(tmp_path / "texts.csv", TEXTS)
    ended = run(tiny_bert, table, "--layer", "2", "--output", output)
    assert ended.code == 0, ended.err
    found = np.load(output)
    assert sorted(found) == ["id", "vector"]
    assert list(found["id"]) == ["train/0", "train/1", "train/2", "train/3"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model = AutoModel.from_pretrained(tiny_bert).eval()
    for text, vector in zip(TEXTS, found["vector"], strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert np.allclose(vector, alone.numpy(), atol=1e-5)


def test_python_gives_the_same_vectors_of_rows(
    run: Embed, tiny_bert: Path, tiny_vit: Path, tmp_path: Path
) -> None:
    output = tmp_path / "features.parquet"
    table = _write_texts(tmp_path / "texts.csv", TEXTS)
    predictor = load_predictor(str(tiny_bert))
    for layer in ("head", "1"):
        ended = run(tiny_bert, table, "--output", output, "--layer", layer)
        vectors = embed(predictor, ({"text": text} for text in TEXTS), layer)
        assert np.allclose(vectors, _read(output, ended)[2], atol=1e-5)
    image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    assert embed(load_predictor(str(tiny_vit)), [{"image": image}] * 2).shape == (2, 16)


def test_the_head_may_read_the_mean(run: Embed, tiny_bert: Path, tmp_path: Path) -> None:
    table = _write_texts(tmp_path / "texts.csv", TEXTS)
    own, mean = tmp_path / "own.parquet", tmp_path / "mean.parquet"
    first = _read(own, run(tiny_bert, table, "--output", own))[2]
    second = _read(mean, run(tiny_bert, table, "--output", mean, "--pooling", "mean"))[2]
    assert first.shape == second.shape == (4, 16)
    assert not np.allclose(first, second, atol=0.1)


def test_what_a_run_computed_is_not_computed_again(
    run: Embed, recipe: Callable[..., Outcome], tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    header, *lines = text_file.read_text().splitlines()
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("\n".join([header, *lines[:60]]))
    (data / "test.csv").write_text("\n".join([header, *lines[60:90]]))
    named = ("--label_column", "animal")
    ended = recipe(
        "text_classification",
        *("--model_name_or_path", tiny_bert, "--dataset_name", data, *named),
        *("--strategy", "head", "--pooling", "own", "--output_dir", tmp_path / "run"),
    )
    assert ended.code == 0, ended.err
    output = tmp_path / "features.parquet"
    embedded = run(tiny_bert, data, *named, "--dataset_split", "train", "--output", output)
    ids, labels, _ = _read(output, embedded)
    assert (len(ids), set(labels)) == (60, {"cat", "dog", "bird"})
    assert "hit" in embedded.err
    finished = run(tmp_path / "run", data, *named, "--output", output)
    ids, _, _ = _read(output, finished)
    assert set(ids) == {f"train/{n}" for n in range(60)} | {f"test/{n}" for n in range(30)}


def test_sounds_have_the_mean_of_a_layer_and_a_new_projector_is_no_feature(
    run: Embed, tmp_path: Path
) -> None:
    sounds = fill_sound_folder(tmp_path / "sounds", per_class=4)
    model = save_wav2vec2(tmp_path / "model")
    refused = run(model, sounds, "--output", tmp_path / "a.parquet")
    assert refused.code == 2
    assert "passed through new weights: projector" in refused.err
    assert "--layer 2" in refused.err
    output = tmp_path / "b.parquet"
    _, labels, vectors = _read(output, run(model, sounds, "--layer", "2", "--output", output))
    assert vectors.shape == (8, 32)
    assert sorted(set(labels)) == ["high", "low"]


def test_words_have_a_vector_each(run: Embed, tiny_bert: Path, tmp_path: Path) -> None:
    model = tmp_path / "tagger"
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(model)
    set_seed(0)
    network = BertForTokenClassification(BertConfig.from_pretrained(tiny_bert, num_labels=3))
    network.save_pretrained(model)
    words = tmp_path / "words.conll"
    words.write_text("the O\nred B-PET\ncat I-PET\n\na O\ndog O\n")
    output = tmp_path / "features.parquet"
    ids, labels, vectors = _read(output, run(model, words, "--output", output))
    assert ids == ["train/0/0", "train/0/1", "train/0/2", "train/1/0", "train/1/1"]
    assert labels == ["O", "B-PET", "I-PET", "O", "O"]
    rows = [{"text": ["the", "red", "cat"]}, {"text": ["a", "dog"]}]
    assert np.allclose(embed(load_predictor(str(model)), rows), vectors, atol=1e-5)
    refused = run(model, words, "--layer", "1", "--output", output)
    assert refused.code == 2
    assert "words have vectors at the head alone" in refused.err


def test_an_image_that_cannot_be_read_is_left_out_and_named(
    run: Embed, tiny_vit: Path, tmp_path: Path
) -> None:
    for name in ("bright", "dark"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / name / "a.png")
    (tmp_path / "images" / "bright" / "b.png").write_text("no image")
    output = tmp_path / "features.parquet"
    ended = run(tiny_vit, tmp_path / "images", "--output", output)
    ids, labels, _ = _read(output, ended)
    assert ids == ["train/0", "train/2"]
    assert labels == ["bright", "dark"]
    assert "left out 1 of 3 inputs: train/1 bright/b.png" in ended.err
    refused = run(tiny_vit, tmp_path / "images", "--on_bad_example", "raise", "--output", output)
    assert refused.code == 2
    assert "cannot use the row train/1" in refused.err
    assert "_split" not in refused.err


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (("--layer", "9"), "unknown layer '9'", "layer 1, layer 2, head"),
        (("--layer", "embeddings"), "unknown layer 'embeddings'", "layer 1, layer 2, head"),
        (
            ("--pooling", "mean"),
            "--pooling mean: ViTForImageClassification reads pixel_values",
            "--layer",
        ),
        (("--output", "x.csv"), "--output 'x.csv' has no known ending", ".parquet or .npz"),
        (("--output", "none/x.npz"), "'none/x.npz' is no file that can be written", "folder"),
        (("--dataset_split", "tst"), "unknown split 'tst'", "train"),
        (("--text_column", "a"), "--text_column does not belong to image-classification", "leave"),
        (("--task", "text-classification"), "was pretrained on image", "image-classification"),
        (("--task", "nothing"), "unknown task 'nothing'", "image-classification"),
        (("--batch_size", "0"), "unknown flag '--batch_size'", "per_device_eval_batch_size"),
        (("--per_device_eval_batch_size", "0"), "is too small", "1 or more"),
        (("--label_column", "kind"), "unknown column 'kind'", "label"),
    ],
)
def test_it_says_in_one_line_what_is_wrong(
    run: Embed,
    monkeypatch: pytest.MonkeyPatch,
    tiny_vit: Path,
    picture_folder: Path,
    tmp_path: Path,
    flags: tuple[str, ...],
    message: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(tiny_vit, picture_folder, *flags)
    error, advice = ended.err.strip().splitlines()[-2:]
    assert ended.code == 2
    assert message in error
    assert hint in advice
    assert not list(tmp_path.iterdir())


def test_a_file_is_named_after_model_and_data(
    run: Embed,
    monkeypatch: pytest.MonkeyPatch,
    tiny_resnet: Path,
    picture_folder: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(tiny_resnet, picture_folder, "--layer", "1").code == 0
    (written,) = tmp_path.iterdir()
    assert written.name == f"{tiny_resnet.name}-{picture_folder.name}.parquet"
