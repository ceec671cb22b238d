"""Training states on a real disk: they are read as written, damage is detected, a full disk leaves no trace."""

import json
import logging
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_transfer import sealed
from hf_transfer.resume import states as states_module
from hf_transfer.resume.states import State, States, verify, write_state
from hf_transfer.sealed import MANIFEST, DamageError, NotWrittenError, temporary_path

FILES = ["manifest.json", "trainer_state.json", "training.pt", "weights.pt"]


def _parts(step: int = 3) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    shared = torch.randn(4, 3, generator=draw)
    weights = {
        "layer.weight": torch.randn(5, 7, generator=draw),
        "layer.turned": torch.randn(6, 2, generator=draw).t(),
        "layer.half": torch.randn(9, generator=draw).to(torch.bfloat16),
        "scale": torch.tensor(0.5),
        "num_batches_tracked": torch.tensor(step),
        "nothing": torch.empty(0, 4),
        "tied.one": shared,
        "tied.two": shared,
        "mask": torch.tensor([True, False]),
    }
    optimizer = {
        "state": {
            0: {"step": torch.tensor(float(step)), "exp_avg": torch.randn(5, 7, generator=draw)}
        },
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "fused": None}],
    }
    stateful = [
        {"skipped": [{"step": 1, "ids": ["a", "b"]}], "in_a_row": 0},
        {"nested": [[1, [2, 3.5]], (4, "x")]},
    ]
    training = {
        "optimizer": optimizer,
        "loss": torch.tensor(1.25),
        "scaler": None,
        "stateful": stateful,
    }
    return {
        "weights": weights,
        "training": training,
        "trainer_state.json": json.dumps({"global_step": step}).encode(),
    }


def _require_equal(one: Any, other: Any) -> int:
    """How many values were compared."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
        return 1
    if isinstance(one, dict):
        assert list(one) == list(other)
        return sum(_require_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return sum(_require_equal(a, b) for a, b in zip(one, other, strict=True))
    assert one == other
    return 1


def _two_states(folder: Path) -> tuple[Path, Path]:
    """The older one and the newer one."""
    states = States(folder)
    for step in (3, 6):
        states.write(f"all-step-{step}", _parts(step), {"step": step})
    states.wait()
    older, newer = sorted(folder.iterdir())
    return older, newer


def _flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    facts = {
        "step": 3,
        "spec": {"the rate": 1e-3, "größe": None},
        "done": [{"name": "head", "epochs": [1, 2.5]}],
    }
    states = States(tmp_path)
    states.write("all-step-3", _parts(), facts)
    states.wait()
    state = States(tmp_path).newest()
    assert state is not None
    assert state.facts == facts
    expected = _parts()
    assert _require_equal(state.load("weights"), expected["weights"]) == 9
    assert _require_equal(state.load("training"), expected["training"]) > 15
    assert (state.path / "trainer_state.json").read_bytes() == expected["trainer_state.json"]


def test_what_training_changes_while_a_state_is_written_is_not_in_it(tmp_path: Path) -> None:
    states, parts = States(tmp_path), _parts()
    for step in (3, 6):  # the second one uses the memory of the first
        parts["weights"]["scale"].fill_(step)
        parts["weights"]["tied.one"].fill_(step)
        states.write(f"all-step-{step}", parts, {})
        for tensor in parts["weights"].values():
            tensor.zero_()
        states.wait()
    older, newer = (State(path, {}).load("weights") for path in sorted(tmp_path.iterdir()))
    assert (older["scale"], newer["scale"]) == (3, 6)
    assert (older["tied.two"] == 3).all()
    assert (newer["tied.two"] == 6).all()


def test_tensors_of_other_sizes_and_types_than_before_are_read_as_written(tmp_path: Path) -> None:
    states = States(tmp_path)
    for tensor in (
        torch.ones(3),
        torch.ones(4),
        torch.ones(4, dtype=torch.bfloat16),
        torch.tensor(1.0),
    ):
        states.write("all", {"weights": {"a": tensor}}, {})
        states.wait()
        state = states.newest()
        assert state is not None
        assert _require_equal(state.load("weights"), {"a": tensor}) == 1


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_in_the_middle(path: Path) -> None:
    _flip(path, path.stat().st_size // 2)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("harm", [_truncate, _empty, _flip_in_the_middle, _lengthen, Path.unlink])
def test_damage_to_any_file_is_logged_and_the_state_before_is_taken(
    harm: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = _two_states(tmp_path)
    contents = {path.name: path.read_bytes() for path in newer.iterdir()}
    assert sorted(contents) == FILES
    for name, content in contents.items():
        caplog.clear()
        harm(newer / name)
        found = States(tmp_path).newest()
        assert found is not None, name
        assert (found.path, found.facts) == (older, {"step": 3}), name
        (message,) = [
            record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
        ]
        assert str(newer) in message
        assert Path(name).stem in message.removeprefix(f"passed over the state {newer}")
        (newer / name).write_bytes(content)
    last = States(tmp_path).newest()
    assert last is not None
    assert last.path == newer


def test_every_flipped_bit_of_any_file_is_detected(tmp_path: Path) -> None:
    looked_at = 0
    _, newer = _two_states(tmp_path)
    for name in FILES:
        size = (newer / name).stat().st_size
        for byte in range(0, size, 1 if name == MANIFEST else 1 + size // 40):
            _flip(newer / name, byte, byte % 8)
            with pytest.raises(DamageError):
                verify(newer)
            _flip(newer / name, byte, byte % 8)
            looked_at += 1
    verify(newer)
    assert looked_at > 500


def test_a_part_that_is_a_folder_is_damage(tmp_path: Path) -> None:
    _, newer = _two_states(tmp_path)
    (newer / "weights.pt").unlink()
    (newer / "weights.pt").mkdir()
    with pytest.raises(DamageError, match=r"weights\.pt cannot be read"):
        verify(newer)


def test_where_every_state_is_damaged_there_is_none_and_each_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for state in _two_states(tmp_path):
        (state / MANIFEST).unlink()
    assert States(tmp_path).newest() is None
    assert [
        record.getMessage().endswith("manifest.json is missing") for record in caplog.records
    ] == [True, True]


def test_a_folder_that_is_not_there_has_no_state(tmp_path: Path) -> None:
    assert States(tmp_path / "none").newest() is None


def test_a_manifest_of_another_format_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, newer = _two_states(tmp_path)
    monkeypatch.setattr(sealed, "FORMAT", 2)
    with pytest.raises(DamageError, match="manifest"):
        verify(newer)


def test_leftovers_of_a_killed_process_are_never_taken_for_a_state_and_are_removed(
    tmp_path: Path,
) -> None:
    _, newer = _two_states(tmp_path)
    shutil.copytree(
        newer, temporary_path(tmp_path / "state-000003-all-step-9")
    )  # killed just before it was renamed
    temporary_path(tmp_path / "state-000004-all-step-9").mkdir()
    (tmp_path / "run.json").write_text("{}")
    found = States(tmp_path).newest()
    assert found is not None
    assert found.path == newer
    States(tmp_path).remove_temporary()
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert len(list(tmp_path.iterdir())) == 3


def test_two_states_are_kept(tmp_path: Path) -> None:
    states = States(tmp_path)
    for step in range(12):
        states.write(f"all-step-{step}", _parts(step), {"step": step})
    states.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state-000011-all-step-10",
        "state-000012-all-step-11",
    ]


def test_the_states_of_another_process_count_too(tmp_path: Path) -> None:
    _, newer = _two_states(tmp_path)
    again = States(tmp_path)
    again.write("all-step-9", _parts(9), {"step": 9})
    again.wait()
    assert sorted(tmp_path.iterdir()) == [newer, tmp_path / "state-000003-all-step-9"]


def test_older_states_stay_until_the_newer_one_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _two_states(tmp_path)

    def write_badly(*args: Any) -> Path:
        path = write_state(*args)
        _flip_in_the_middle(path / "weights.pt")
        return path

    monkeypatch.setattr(states_module, "write_state", write_badly)
    states = States(tmp_path)
    states.write("all-step-9", _parts(9), {"step": 9})
    with pytest.raises(
        NotWrittenError, match=r"was not read as it was written: weights\.pt is not"
    ):
        states.wait()
    states.wait()  # it is raised once
    assert sorted(tmp_path.iterdir()) == list(before)


def test_clear_removes_all_states_and_nothing_else(tmp_path: Path) -> None:
    _two_states(tmp_path)
    temporary_path(tmp_path / "state-000003-x").mkdir()
    (tmp_path / "run.json").write_text("{}")
    States(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@contextmanager
def _limit_file_size(size: int) -> Iterator[None]:
    """Within the context no file of this process grows beyond `size` bytes (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _growing_parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts and facts whose files are each larger than those written before."""
    weights, training = {"a": torch.ones(1_000)}, {"b": torch.ones(5_000)}
    return {"weights": weights, "training": training, "trainer_state.json": b"x" * 60_000}, {
        "long": "x" * 120_000
    }


def test_a_full_disk_at_any_file_leaves_the_older_states_and_nothing_else(
    tmp_path: Path,
) -> None:
    parts, facts = _growing_parts()
    older, newer = _two_states(tmp_path)
    probe = write_state(tmp_path / "probe" / "probe", parts, facts)
    files = ["weights.pt", "training.pt", "trainer_state.json", "manifest.json"]
    sizes = [(probe / name).stat().st_size for name in files]
    shutil.rmtree(probe.parent)
    assert sizes == sorted(sizes)
    for size in sizes:
        for limit in (
            size - 1,
            size // 2 if size == sizes[0] else size - 900,
        ):  # at the end, and within
            states = States(tmp_path)
            with _limit_file_size(limit):
                states.write("all-step-9", parts, facts)
                with pytest.raises(NotWrittenError) as refused:
                    states.wait()
            assert str(tmp_path / "state-000003-all-step-9") in str(refused.value)
            assert "(84,000 bytes)" in str(refused.value)
            assert "File too large" in str(refused.value)
            assert sorted(tmp_path.iterdir()) == [older, newer]
            verify(older)
            verify(newer)
    with _limit_file_size(sizes[-1]):
        assert verify(write_state(tmp_path / "state-000003-all", parts, facts)) == facts


def test_after_a_full_disk_the_next_state_is_written(tmp_path: Path) -> None:
    states = States(tmp_path)
    with _limit_file_size(100):
        states.write("all-step-3", _parts(3), {"step": 3})
        with pytest.raises(NotWrittenError):
            states.wait()
    states.write("all-step-6", _parts(6), {"step": 6})
    states.wait()
    found = states.newest()
    assert found is not None
    assert _require_equal(found.load("weights"), _parts(6)["weights"]) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["state-000001-all-step-6"]


def test_a_folder_that_cannot_be_created_raises_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(NotWrittenError, match=r"state-1 \(.* bytes\): .*[Nn]ot a directory"):
        write_state(tmp_path / "checkpoints" / "state-1", _parts(), {})
