import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from hf_transfer.errors import UserError
from hf_transfer.models.locate import ASSETS
from hf_transfer.tasks import find_task
from tests import checkpoints

IMAGES = find_task("image-classification")
LABELS = ("x", "y", "z")


def test_a_checkpoint_of_another_modality_is_refused_before_its_weights_are_read(
    tiny_bert: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_bert / "config.json", tmp_path)  # there are no weights to read
    with pytest.raises(
        UserError, match=r"\(bert\) was pretrained on text, image-classification needs image"
    ):
        checkpoints.load(str(tmp_path), IMAGES, LABELS)


def test_an_architecture_without_such_a_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vitdet"}))
    with pytest.raises(UserError, match="no class for image-classification"):
        checkpoints.load(str(tmp_path), IMAGES, LABELS)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        checkpoints.load(str(tmp_path), IMAGES, LABELS)


def test_an_unknown_builtin_lists_those_that_there_are() -> None:
    with pytest.raises(UserError) as refusal:
        checkpoints.load("builtin:letters", IMAGES, LABELS)
    assert "letters-resnet" in refusal.value.hint


def test_the_shipped_checkpoint_is_small_and_knows_no_digit() -> None:
    folder = ASSETS / "letters-resnet"
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    names = AutoConfig.from_pretrained(folder).id2label.values()
    assert len(names) == 167
    assert not any(name.isdigit() for name in names)
    assert "No digit is among them" in (folder / "README.md").read_text()
