import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from hf_transfer.cli.flags import read_config
from hf_transfer.config.data import DataConfig
from hf_transfer.config.training import Augmentation
from hf_transfer.data.augmentation import AUGMENTATIONS, make_augmentation
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.studies.choose import choose_plan
from hf_transfer.tasks import find_task
from hf_transfer.training.engine import Trained, run_plan
from tests import checkpoints
from tests.conftest import Outcome

SIZE = (32, 24)
TASK = find_task("image-classification")
Recipe = Callable[..., Outcome]


def test_the_table_has_a_row_for_every_value_of_the_flag() -> None:
    assert len(AUGMENTATIONS) > 1
    assert ("none", *AUGMENTATIONS) == get_args(Augmentation)


def test_none_is_no_augmentation() -> None:
    assert make_augmentation("none", SIZE) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_shape_and_dtype_stay(name: str, dtype: torch.dtype) -> None:
    for rows, channels in ((1, 1), (5, 3)):
        pixels = torch.randn(rows, channels, *SIZE).to(dtype)
        changed = _augment(name, pixels, seed=0)
        assert changed.shape == pixels.shape
        assert changed.dtype == dtype
        assert changed.isfinite().all()


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_an_image_of_one_colour_stays_as_it_is(name: str) -> None:
    # What is moved in continues the image: no black where black is not zero.
    pixels = torch.full((8, 3, *SIZE), -2.1)
    assert torch.allclose(_augment(name, pixels, seed=0), pixels, atol=1e-5)


def test_light_changes_the_pixels_and_keeps_their_mean_roughly() -> None:
    pixels = _strokes(64)
    changed = _augment("light", pixels, seed=0)
    assert all(
        not torch.equal(before, after) for before, after in zip(pixels, changed, strict=True)
    )
    assert float(changed.mean()) == pytest.approx(float(pixels.mean()), rel=0.1)


def test_every_image_of_a_batch_is_changed_in_its_own_way() -> None:
    for name in AUGMENTATIONS:
        changed = _augment(name, _strokes(1).expand(4, -1, -1, -1), seed=0)
        assert not any(torch.equal(changed[0], other) for other in changed[1:]), name


@pytest.mark.parametrize(("name", "mirrored"), [("light", False), ("photo", True)])
def test_only_photo_takes_left_for_right(name: str, mirrored: bool) -> None:
    # Brighter from left to right: turned a little, or cropped, it stays so; only a flip makes it darker.
    pixels = torch.linspace(-1, 1, SIZE[1]).expand(200, 1, *SIZE)
    columns = _augment(name, pixels, seed=0).mean(dim=(1, 2))
    flipped = float((columns[:, -1] < columns[:, 0]).float().mean())
    assert flipped == pytest.approx(0.5, abs=0.15) if mirrored else flipped == 0


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_the_global_generator_decides_what_is_drawn(name: str) -> None:
    augment, pixels = make_augmentation(name, SIZE), torch.randn(6, 3, *SIZE)
    assert augment is not None
    torch.manual_seed(3)
    augment(pixels)
    state = torch.get_rng_state()
    first = augment(pixels)
    assert not torch.equal(augment(pixels), first)
    torch.set_rng_state(state)  # as a run does that goes on
    assert torch.equal(augment(pixels), first)


def test_the_same_seed_gives_the_same_weights(tiny_vit: Path, tmp_path: Path) -> None:
    runs = [
        _run(tiny_vit, tmp_path, "--augmentation", "photo").model.state_dict() for _ in range(2)
    ]
    plain = _run(tiny_vit, tmp_path).model.state_dict()
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())
    assert not torch.equal(plain["classifier.weight"], runs[0]["classifier.weight"])


def test_another_seed_gives_other_batches(tiny_vit: Path, tmp_path: Path) -> None:
    flags = ("--augmentation", "light", "--train_sampling_strategy", "sequential")
    seen = [
        _images(tiny_vit, tmp_path, *flags, "--seed", seed)[True][0] for seed in ("1", "1", "2")
    ]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_evaluation_sees_plain_images_and_training_changed_ones(
    tiny_vit: Path, tmp_path: Path
) -> None:
    flags = (
        "--train_sampling_strategy",
        "sequential",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
    )
    plain = _images(tiny_vit, tmp_path, *flags)
    changed = _images(tiny_vit, tmp_path, *flags, "--augmentation", "light")
    assert len(plain[False]) > 1
    assert all(torch.equal(*both) for both in zip(plain[False], changed[False], strict=True))
    assert len(plain[True]) > 1
    assert not any(torch.equal(*both) for both in zip(plain[True], changed[True], strict=True))


def test_the_phases_say_which_of_them_saw_changed_images(tiny_vit: Path, tmp_path: Path) -> None:
    phases = _run(tiny_vit, tmp_path, "--augmentation", "light", strategy="head_then_full").phases
    assert [phase.augmentation for phase in phases] == [None, "light"]


def test_where_all_is_computed_once_augmentation_changes_nothing_and_says_so(
    tiny_vit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [
        _run(tiny_vit, tmp_path, "--augmentation", name, strategy="head")
        for name in ("light", "none")
    ]
    weights = [run.model.state_dict()["classifier.weight"] for run in runs]
    assert torch.equal(*weights)
    assert runs[0].phases[0].augmentation is None
    assert [r.message for r in caplog.records if "augmentation light has no effect" in r.message]


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown value of --augmentation 'foto'") as refusal:
        make_augmentation("foto", SIZE)
    assert "photo" in refusal.value.hint
    with pytest.raises(UserError, match="unknown --augmentation 'foto'") as refusal:
        _config(tmp_path, "--augmentation", "foto")
    assert "photo" in refusal.value.hint


def test_a_text_task_is_refused_before_anything_is_written(
    recipe: Recipe, tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    ended = recipe(
        "text_classification",
        *(
            "--model_name_or_path",
            tiny_bert,
            "--dataset_name",
            text_file,
            "--output_dir",
            tmp_path / "run",
        ),
        *("--augmentation", "light", "--use_cpu"),
    )
    assert ended.code == 2, ended.err
    assert "error: --augmentation light is for images, not for text-classification" in ended.err
    assert not (tmp_path / "run").exists()


def test_a_model_that_takes_no_images_is_refused(
    tiny_bert: Path, text_file: Path, tmp_path: Path
) -> None:
    config, task = _config(tmp_path, "--augmentation", "light"), find_task("text-classification")
    data = load_data(DataConfig(str(text_file), label_column="animal"), task, seed=0)
    checkpoint = checkpoints.load(str(tiny_bert), task, data.labels)
    plan = choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan
    with pytest.raises(UserError, match="--augmentation light is for images"):
        run_plan(plan, checkpoint, data, config.training, config.cache)


def test_without_kornia_the_extra_is_named(
    recipe: Recipe, tiny_vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.delitem(sys.modules, "kornia.augmentation", raising=False)
    ended = recipe(
        "image_classification",
        *(
            "--model_name_or_path",
            tiny_vit,
            "--dataset_name",
            "builtin:digits",
            "--output_dir",
            tmp_path / "run",
        ),
        *("--augmentation", "light", "--use_cpu"),
    )
    assert ended.code == 2, ended.err
    assert "error: --augmentation light needs kornia, which is not installed" in ended.err
    assert "pip install hf-transfer-learning[augmentation]" in ended.err
    assert not (tmp_path / "run").exists()


def test_the_record_names_the_augmentation_of_a_run(
    recipe: Recipe, tiny_vit: Path, tmp_path: Path
) -> None:
    from hf_transfer.record import read_record

    ended = recipe(
        "image_classification",
        *(
            "--model_name_or_path",
            tiny_vit,
            "--dataset_name",
            "builtin:digits",
            "--output_dir",
            tmp_path / "run",
        ),
        *(
            "--augmentation",
            "light",
            "--strategy",
            "full",
            "--max_steps",
            "2",
            "--examples_per_class",
            "2",
        ),
        *("--use_cpu", "--disable_tqdm", "true"),
    )
    assert ended.code == 0, ended.err
    assert (
        read_record(tmp_path / "run" / "record.json").model.hyperparameters["augmentation"]
        == "light"
    )
    assert "| augmentation | light |" in (tmp_path / "run" / "README.md").read_text(
        encoding="utf-8"
    )


def _augment(name: str, pixels: torch.Tensor, seed: int) -> torch.Tensor:
    augment = make_augmentation(name, SIZE)
    assert augment is not None
    torch.manual_seed(seed)
    return augment(pixels)


def _strokes(rows: int) -> torch.Tensor:
    """Images of a bright stroke, not in the middle, on a dark ground."""
    pixels = torch.zeros(rows, 1, *SIZE)
    pixels[:, :, 8:20, 8:14] = 1.0
    return pixels


def _images(folder: Path, tmp_path: Path, *flags: str) -> dict[bool, list[torch.Tensor]]:
    """What the model saw while it trained (True) and was evaluated (False)."""
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    def look(model: Any, args: Any, inputs: dict[str, Any]) -> None:
        seen[model.training].append(inputs["pixel_values"].clone())

    _run(folder, tmp_path, *flags, look=look)
    return seen


def _run(
    folder: Path, tmp_path: Path, *flags: str, strategy: str = "full", look: Any = None
) -> Trained:
    config = _config(
        tmp_path, "--strategy", strategy, "--max_steps", "3", "--disable_tqdm", "true", *flags
    )
    data = load_data(DataConfig("builtin:digits", max_train_samples=40), TASK, seed=0)
    checkpoint = checkpoints.load(str(folder), TASK, data.labels, seed=0)
    if look is not None:
        checkpoint.model.register_forward_pre_hook(look, with_kwargs=True)
    return run_plan(
        choose_plan(config.transfer, checkpoint, data, config.training, config.cache).plan,
        checkpoint,
        data,
        config.training,
        config.cache,
    )


def _config(tmp_path: Path, *flags: str) -> Any:
    given = [
        "--model_name_or_path",
        "x",
        "--dataset_name",
        "y",
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
    ]
    return read_config(argv=[*given, *flags])
