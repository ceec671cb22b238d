"""Activations on a real disk: written rows come back, damage is detected, killed writers leave nothing."""

import json
import logging
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from hf_transfer import sealed
from hf_transfer.sealed import NotWrittenError
from hf_transfer.store.activations import open_activations, write_activations
from hf_transfer.store.entries import list_entries, prune
from tests.unit.store.rows import (
    Rows,
    assert_same,
    finish,
    make_rows,
    names,
    start,
    store,
    two_by_two,
)

# Reading and writing


def test_rows_are_read_as_they_were_written(tmp_path: Path, verified: set[object]) -> None:
    rows = make_rows()
    assert_same(write_activations(tmp_path, "key", len(rows), two_by_two(rows), {}), rows)
    verified.clear()
    assert_same(open_activations(tmp_path, "key"), rows)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "bool", "int8", "uint8", "int16", "int32", "int64"]
)
@pytest.mark.parametrize("shape", [(), (4,), (0,), (2, 0, 3), (2, 3, 4)])
def test_every_dtype_is_stored_in_every_shape(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    rows = [
        {"x": np.asarray(np.random.default_rng(n).integers(0, 2, shape), dtype)} for n in range(3)
    ]
    store(tmp_path, rows=rows)
    assert_same(open_activations(tmp_path, "key"), rows)


def test_bfloat16_is_stored_as_bits_that_torch_reads(tmp_path: Path) -> None:
    import torch

    tensor = torch.randn(4, 3, dtype=torch.bfloat16)
    row = {"x": tensor.view(torch.uint16).numpy(), "ids": np.arange(3, dtype=np.uint16)}
    found = write_activations(tmp_path, "key", 1, [[row]], {}, bfloat16={"x"})
    assert found.dtypes == {"x": "bfloat16", "ids": "uint16"}
    assert torch.equal(torch.from_numpy(found[0]["x"].copy()).view(torch.bfloat16), tensor)


def test_bfloat16_that_does_not_come_as_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must come as uint16 bits"):
        write_activations(
            tmp_path, "key", 1, [[{"x": np.zeros(2, np.float32)}]], {}, bfloat16={"x"}
        )
    assert not list(tmp_path.iterdir())


def test_only_names_of_different_lengths_have_offsets(tmp_path: Path) -> None:
    path = store(tmp_path)
    found = open_activations(tmp_path, "key")
    assert found is not None
    assert list(found.offsets) == ["ragged"]
    assert found.values["fixed"].shape == (7, 3, 2)
    assert sorted(file.suffix for file in path.iterdir()) == [
        ".json",
        ".offsets",
        ".values",
        ".values",
        ".values",
    ]


def test_rows_of_the_same_odd_length_in_later_batches_are_ragged(tmp_path: Path) -> None:
    rows = [{"x": np.arange(2 if n < 4 else 3)} for n in range(8)]
    store(tmp_path, rows=rows)
    assert_same(open_activations(tmp_path, "key"), rows)


def test_arrays_of_another_memory_order_are_stored_in_c_order(tmp_path: Path) -> None:
    turned = np.arange(12, dtype=">f4").reshape(3, 4).T
    store(tmp_path, rows=[{"x": turned}])
    found = open_activations(tmp_path, "key")
    assert found is not None
    np.testing.assert_array_equal(found[0]["x"], turned)


def test_opened_activations_are_read_only(tmp_path: Path) -> None:
    store(tmp_path)
    found = open_activations(tmp_path, "key")
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found[0]["fixed"][0] = 1


def test_rows_can_be_indexed_from_the_end_and_not_beyond_it(tmp_path: Path) -> None:
    store(tmp_path)
    found = open_activations(tmp_path, "key")
    assert found is not None
    assert found[-1]["number"] == 6
    with pytest.raises(IndexError):
        found[7]


def test_pickling_carries_the_address_and_not_the_content(tmp_path: Path) -> None:
    rows = [{"x": np.zeros(100_000)}]
    store(tmp_path, rows=rows)
    carried = pickle.dumps(open_activations(tmp_path, "key"))
    assert len(carried) < 1000
    assert_same(pickle.loads(carried), rows)


def test_an_entry_may_have_no_rows(tmp_path: Path) -> None:
    store(tmp_path, rows=[])
    assert_same(open_activations(tmp_path, "key"), [])


def test_an_entry_that_was_never_written_is_absent_and_nothing_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_activations(tmp_path / "nowhere", "key") is None
    assert not caplog.records


@pytest.mark.parametrize("key", ["", "../x", "a/b", "x" * 129, "a.b"])
def test_a_key_that_cannot_name_a_folder_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        open_activations(tmp_path, key)


# Refusals


@pytest.mark.parametrize("rows", [6, 8])
def test_another_number_of_rows_is_refused_and_leaves_nothing(tmp_path: Path, rows: int) -> None:
    with pytest.raises(ValueError, match=f"expected {rows} rows"):
        write_activations(tmp_path, "key", rows, two_by_two(make_rows(7)), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "odd",
    [
        {"x": np.zeros((2, 4), np.float32)},
        {"x": np.zeros((2, 3), np.float64)},
        {"x": np.zeros(2, np.float32)},
        {"y": np.zeros((2, 3), np.float32)},
        {},
        {"x": np.zeros((2, 3), np.float32), "y": np.zeros(1)},
    ],
)
def test_a_row_unlike_the_others_is_refused_and_leaves_nothing(
    tmp_path: Path, odd: dict[str, np.ndarray]
) -> None:
    rows = [{"x": np.zeros((2, 3), np.float32)}, odd]
    with pytest.raises(ValueError, match=r"only the first axis may vary|rows of"):
        write_activations(tmp_path, "key", 2, [rows], {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([None]), np.zeros(2, complex)])
def test_arrays_that_are_not_numbers_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        write_activations(tmp_path, "key", 1, [[{"x": array}]], {})


def test_an_error_of_the_network_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def batches() -> Iterator[Rows]:
        yield make_rows(2)
        raise OSError("the network's own")

    with pytest.raises(OSError, match="the network's own"):
        write_activations(tmp_path, "key", 4, batches(), {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_raises_with_its_path_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    write(sys.argv[1], "key", 5)
except NotWrittenError as error:
    print("not stored:", error)
"""
    assert finish(start(code, tmp_path)).startswith(f"not stored: {tmp_path}: ")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_created_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWrittenError, match="Not a directory"):
        write_activations(tmp_path / "file" / "store", "key", 1, [], {})


def test_about_that_is_not_json_is_refused_before_any_batch_is_computed(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_activations(
            tmp_path, "key", 1, iter(lambda: pytest.fail("computed"), None), {"date": object()}
        )


# Damage


@pytest.mark.parametrize("part", range(5))
def test_a_flipped_bit_is_found_in_every_file(
    tmp_path: Path, part: int, verified: set[object], caplog: pytest.LogCaptureFixture
) -> None:
    path = store(tmp_path / "whole")
    assert len(names(path)) == 5
    file = path / names(path)[part]
    content, places = file.read_bytes(), random.Random(part)
    for bit in {0, 8 * len(content) - 1, *(places.randrange(8 * len(content)) for _ in range(40))}:
        shutil.copytree(path, tmp_path / "store" / path.name)
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "store" / path.name / file.name).write_bytes(changed)
        verified.clear()
        assert open_activations(tmp_path / "store", "key") is None, bit
        assert not list((tmp_path / "store").iterdir())
    assert "damaged and will be computed again" in caplog.text


@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("size", [0, -1, None])
def test_a_truncated_or_missing_file_is_found_at_every_open(
    tmp_path: Path, part: int, size: int | None
) -> None:
    path = store(tmp_path)
    file = path / names(path)[part]
    if size is None:
        file.unlink()
    else:
        os.truncate(file, size % file.stat().st_size)
    assert open_activations(tmp_path, "key") is None
    assert not path.exists()


def test_damage_with_an_unchanged_date_is_found_by_another_process(tmp_path: Path) -> None:
    path = store(tmp_path)
    file = path / "0.values"
    before = file.stat()
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert finish(start("print(open_activations(Path(sys.argv[1]), 'key'))", tmp_path)).endswith(
        "None"
    )


def test_content_is_verified_once_per_process(
    tmp_path: Path, verified: set[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path)
    verified.clear()
    assert open_activations(tmp_path, "key") is not None
    monkeypatch.setattr(sealed.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert open_activations(tmp_path, "key") is not None


def test_an_entry_under_the_name_of_another_key_is_not_trusted(tmp_path: Path) -> None:
    store(tmp_path, "one").rename(tmp_path / "two.activations")
    assert open_activations(tmp_path, "two") is None


def test_an_entry_of_an_earlier_version_is_still_a_hit(tmp_path: Path) -> None:
    """The format is that of version 0.1.0: what users have stored stays valid."""
    values = np.arange(4, dtype="<f4").tobytes()
    file = {"name": "0.values", "bytes": 16, "xxh3_128": xxhash.xxh3_128_hexdigest(values)}
    column = {"name": "x", "dtype": "float32", "shape": [2, 2], "files": [file]}
    entry = {"format": 1, "key": "key", "rows": 2, "columns": [column], "about": {"model": "m"}}
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(entry).encode())
    folder = tmp_path / "key.activations"
    folder.mkdir()
    (folder / "0.values").write_bytes(values)
    manifest = json.dumps({"entry": entry, "xxh3_128": checksum}, indent=1)
    (folder / "manifest.json").write_text(manifest)
    assert_same(
        open_activations(tmp_path, "key"), [{"x": np.float32([0, 1])}, {"x": np.float32([2, 3])}]
    )
    new = store(tmp_path, "new", [{"x": np.float32([0, 1])}, {"x": np.float32([2, 3])}], model="m")
    assert (new / "manifest.json").read_text() == manifest.replace(
        '"key": "key"', '"key": "new"'
    ).replace(checksum, json.loads((new / "manifest.json").read_text())["xxh3_128"])


def test_an_entry_of_another_format_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = store(tmp_path)
    monkeypatch.setattr(sealed, "FORMAT", 2)
    assert open_activations(tmp_path, "key") is None
    assert not path.exists()
    assert "damaged and will be computed again" in caplog.text


def test_a_damaged_entry_is_replaced_by_the_next_writer(tmp_path: Path) -> None:
    path = store(tmp_path)
    (path / "manifest.json").unlink()
    assert store(tmp_path) == path
    assert_same(open_activations(tmp_path, "key"), make_rows())


# Processes


def test_killed_writers_leave_nothing_that_is_trusted(tmp_path: Path) -> None:
    places = random.Random(0)
    for _ in range(5):
        process = start("print('go', flush=True); write(sys.argv[1], 'key', 10_000)", tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(places.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert open_activations(tmp_path, "key") is None
        assert list_entries(tmp_path) == []
    assert list(tmp_path.iterdir())
    store(tmp_path)
    assert names(tmp_path) == ["key.activations"]


def test_a_writer_killed_between_entries_leaves_complete_ones(
    tmp_path: Path, verified: set[object]
) -> None:
    places, checked = random.Random(0), 0
    for number in range(4):
        folder = tmp_path / str(number)
        process = start(
            "print('go', flush=True); [write(sys.argv[1], f'k{n}', 2) for n in range(10_000)]",
            folder,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1 + places.uniform(0, 0.15))
        process.kill()
        process.communicate()
        for listed in list_entries(folder):
            found = open_activations(folder, listed.key)
            assert found is not None
            assert [int(row["x"][-1]) for row in found] == list(range(16))  # type: ignore[attr-defined]
            checked += 1
    assert checked > 4


def test_a_temporary_folder_of_a_live_process_stays(tmp_path: Path) -> None:
    process = start(
        "print('go', flush=True); print(len(write(sys.argv[1], 'slow', 10, 0.05)))", tmp_path
    )
    assert process.stdout is not None
    process.stdout.readline()
    while not tmp_path.exists() or not names(tmp_path):
        time.sleep(0.01)
    store(tmp_path, "quick")
    prune(tmp_path)
    assert len(names(tmp_path)) == 2
    assert finish(process) == "80"
    assert names(tmp_path) == ["quick.activations", "slow.activations"]


@pytest.mark.parametrize(("hours", "stays"), [(1, True), (48, False)])
def test_a_temporary_folder_of_another_host_is_removed_when_it_is_old(
    tmp_path: Path, hours: int, stays: bool
) -> None:
    foreign = tmp_path / f".key.{'0' * 12}.1.{'0' * 12}.tmp"
    foreign.mkdir(parents=True)
    os.utime(foreign, (time.time() - hours * 3600,) * 2)
    store(tmp_path)
    assert foreign.exists() == stays


def test_several_writers_of_one_key_all_finish_and_one_entry_stays(tmp_path: Path) -> None:
    code = "found = write(sys.argv[1], 'key', 20, 0.01); print(sum(int(row['x'][0]) for row in found), found.cache_dir)"
    writers = [start(code, tmp_path) for _ in range(3)]
    assert {finish(writer) for writer in writers} == {
        f"{sum(range(8)) * 20 + 64 * sum(range(20))} {tmp_path}"
    }
    assert names(tmp_path) == ["key.activations"]
    assert open_activations(tmp_path, "key") is not None


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    code = """
write(sys.argv[1], "warm", 2)
found = write(sys.argv[1], "key", int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    few, many = (int(finish(start(code, tmp_path / str(count), count))) for count in (40, 400))
    assert many < 1.05 * few
    assert list_entries(tmp_path / "400")[0].nbytes > 50e6


def test_a_process_that_has_an_entry_open_keeps_its_content(tmp_path: Path) -> None:
    store(tmp_path)
    found = open_activations(tmp_path, "key")
    assert prune(tmp_path, everything=True) > 0
    assert names(tmp_path) == []
    assert_same(found, make_rows())


def test_the_manifest_is_readable_json(tmp_path: Path) -> None:
    path = store(tmp_path, model="tiny", boundary="head")
    assert json.loads((path / "manifest.json").read_text())["entry"]["about"] == {
        "model": "tiny",
        "boundary": "head",
    }


def test_the_log_names_the_damaged_file(
    tmp_path: Path, verified: set[object], caplog: pytest.LogCaptureFixture
) -> None:
    path = store(tmp_path)
    os.truncate(path / "0.values", 5)
    with caplog.at_level(logging.WARNING):
        open_activations(tmp_path, "key")
    assert f"{path}: 0.values has 5 bytes instead of 168" in caplog.text
