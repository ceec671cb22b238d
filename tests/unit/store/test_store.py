import enum
import json
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_transfer.store import activations as cache
from hf_transfer.store import columns as entry
from hf_transfer.store.activations import (
    NotWritten,
    cache_folder,
    digest,
    estimate_bytes,
    list_entries,
    open_activations,
    prune,
    room_for,
    write_activations,
)

Rows = list[dict[str, np.ndarray]]

# What second processes run: write(folder, key, batches, pause) stores rows of 4,000 numbers, eight a batch.
CHILD = """
import os, resource, sys, time
import numpy as np
from pathlib import Path
from hf_transfer.store.activations import *
from hf_transfer.store.activations import NotWritten

def batches(count, pause=0.0, width=4000):
    for batch in range(count):
        time.sleep(pause)
        yield [{"x": np.full(width, 8 * batch + n, np.float32), "y": np.zeros((n % 3, 2))} for n in range(8)]

def write(folder, key, count, pause=0.0):
    return write_activations(Path(folder), key, 8 * count, batches(count, pause), {"by": os.getpid()})
"""


def start(code: str, *words: object) -> subprocess.Popen[str]:
    """A second process."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return out.strip()


def two_by_two(rows: Rows) -> Iterator[Rows]:
    yield from (rows[start : start + 2] for start in range(0, len(rows), 2))


def make_rows(count: int = 7) -> Rows:
    """A name of fixed rows, a ragged one with empty rows, and a number."""
    rng = np.random.default_rng(0)
    return [
        {
            "fixed": rng.standard_normal((3, 2)).astype(np.float32),
            "ragged": rng.standard_normal((n % 4, 5)).astype(np.float16),
            "number": np.asarray(n),
        }
        for n in range(count)
    ]


def store(folder: Path, key: str = "key", rows: Rows | None = None, **about: Any) -> Path:
    """The folder of an entry that was just written."""
    rows = make_rows() if rows is None else rows
    write_activations(folder, key, len(rows), two_by_two(rows), about)
    return folder / f"{key}.activations"


def assert_same(found: cache.Activations | None, rows: Rows) -> None:
    assert found is not None
    assert len(found) == len(rows)
    for row, expected in zip(found, rows, strict=True):  # type: ignore[call-overload]
        assert row.keys() == expected.keys()
        for name, array in expected.items():
            assert row[name].dtype == array.dtype
            np.testing.assert_array_equal(row[name], array, strict=True)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> set[object]:
    """What a new process has checked: nothing. Clear it to be a newer one."""
    checked: set[object] = set()
    monkeypatch.setattr(entry, "_CHECKED", checked)
    return checked


# Reading and writing


def test_rows_come_back_as_they_were_written(tmp_path: Path, fresh: set[object]) -> None:
    rows = make_rows()
    assert_same(write_activations(tmp_path, "key", len(rows), two_by_two(rows), {}), rows)
    fresh.clear()
    assert_same(open_activations(tmp_path, "key"), rows)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "bool", "int8", "uint8", "int16", "int32", "int64"]
)
@pytest.mark.parametrize("shape", [(), (4,), (0,), (2, 0, 3), (2, 3, 4)])
def test_every_dtype_is_kept_in_every_shape(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    rows = [
        {"x": np.asarray(np.random.default_rng(n).integers(0, 2, shape), dtype)} for n in range(3)
    ]
    store(tmp_path, rows=rows)
    assert_same(open_activations(tmp_path, "key"), rows)


def test_bfloat16_is_kept_as_bits_that_torch_reads(tmp_path: Path) -> None:
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


def test_arrays_of_another_order_are_written_in_ours(tmp_path: Path) -> None:
    turned = np.arange(12, dtype=">f4").reshape(3, 4).T
    store(tmp_path, rows=[{"x": turned}])
    found = open_activations(tmp_path, "key")
    assert found is not None
    np.testing.assert_array_equal(found[0]["x"], turned)


def test_what_is_opened_cannot_be_changed(tmp_path: Path) -> None:
    store(tmp_path)
    found = open_activations(tmp_path, "key")
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found[0]["fixed"][0] = 1


def test_rows_count_from_the_end_too_and_end(tmp_path: Path) -> None:
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


def test_no_rows_are_an_entry_too(tmp_path: Path) -> None:
    store(tmp_path, rows=[])
    assert_same(open_activations(tmp_path, "key"), [])


def test_what_was_never_written_is_absent_without_a_word(
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
def test_what_is_no_number_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        write_activations(tmp_path, "key", 1, [[{"x": array}]], {})


def test_an_error_of_the_network_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def batches() -> Iterator[Rows]:
        yield make_rows(2)
        raise OSError("the network's own")

    with pytest.raises(OSError, match="the network's own"):
        write_activations(tmp_path, "key", 4, batches(), {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    write(sys.argv[1], "key", 5)
except NotWritten as error:
    print("not stored:", error)
"""
    assert "not stored" in finish(start(code, tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten):
        write_activations(tmp_path / "file" / "store", "key", 1, [], {})


# Damage


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


@pytest.mark.parametrize("part", range(5))
def test_a_flipped_bit_is_found_in_every_file(
    tmp_path: Path, part: int, fresh: set[object], caplog: pytest.LogCaptureFixture
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
        fresh.clear()
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


def test_damage_with_its_old_date_is_found_by_another_process(tmp_path: Path) -> None:
    path = store(tmp_path)
    file = path / "0.values"
    before = file.stat()
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert finish(start("print(open_activations(Path(sys.argv[1]), 'key'))", tmp_path)).endswith(
        "None"
    )


def test_content_is_read_once_a_process(
    tmp_path: Path, fresh: set[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path)
    fresh.clear()
    assert open_activations(tmp_path, "key") is not None
    monkeypatch.setattr(entry.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert open_activations(tmp_path, "key") is not None


def test_an_entry_under_the_name_of_another_key_is_not_trusted(tmp_path: Path) -> None:
    store(tmp_path, "one").rename(tmp_path / "two.activations")
    assert open_activations(tmp_path, "two") is None


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


def test_a_writer_killed_between_its_entries_leaves_whole_ones(
    tmp_path: Path, fresh: set[object]
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
def test_a_temporary_folder_of_another_host_goes_when_it_is_old(
    tmp_path: Path, hours: int, stays: bool
) -> None:
    foreign = tmp_path / f".key.{'0' * 12}.1.{'0' * 12}.tmp"
    foreign.mkdir(parents=True)
    os.utime(foreign, (time.time() - hours * 3600,) * 2)
    store(tmp_path)
    assert foreign.exists() == stays


def test_two_writers_of_one_key_both_finish_and_one_entry_stays(tmp_path: Path) -> None:
    code = "found = write(sys.argv[1], 'key', 20, 0.01); print(sum(int(row['x'][0]) for row in found), found.folder)"
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


def test_who_has_an_entry_open_keeps_its_content(tmp_path: Path) -> None:
    store(tmp_path)
    found = open_activations(tmp_path, "key")
    assert prune(tmp_path, everything=True) > 0
    assert names(tmp_path) == []
    assert_same(found, make_rows())


# Size


def test_the_estimate_is_near_the_size(tmp_path: Path) -> None:
    rows = make_rows(400)
    store(tmp_path, rows=rows)
    assert list_entries(tmp_path)[0].nbytes == pytest.approx(
        estimate_bytes(rows[:40], 400), rel=0.1
    )


def test_an_empty_sample_gives_no_estimate() -> None:
    with pytest.raises(ValueError, match="empty sample"):
        estimate_bytes([], 10)


def test_there_is_room_within_the_limit(tmp_path: Path) -> None:
    assert room_for(tmp_path / "not" / "yet", 10**6, 1.0) is None


def test_what_is_there_counts_against_the_limit(tmp_path: Path) -> None:
    store(tmp_path, rows=[{"x": np.zeros(25_000)}])
    why = room_for(tmp_path, 900_000, 0.001)
    assert why == "900.0 kB beside the 200.4 kB already there are more than --cache_limit_gb 0.001"


def test_a_disk_without_room_is_said_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 7e9, 2e9)
    )  # type: ignore[attr-defined]
    why = room_for(tmp_path / "not", 1_500_000_000, 100)
    assert why == f"1.5 GB are too much for a disk with 2.0 GB free at {tmp_path}"


# Listing and pruning


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Entries last used 1, 2 and 3 hours ago, and things that are not the store's."""
    for hours in (1, 2, 3):
        path = store(tmp_path, f"h{hours}", rows=[{"x": np.zeros(1000)}], model=f"m{hours}")
        os.utime(path / "manifest.json", (time.time() - 3600 * hours,) * 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "my own.activations").mkdir()
    return tmp_path


def keys(folder: Path) -> list[str]:
    return [entry.key for entry in list_entries(folder)]


def test_entries_are_listed_with_the_last_used_first(three: Path) -> None:
    entries = list_entries(three)
    assert [entry.key for entry in entries] == ["h1", "h2", "h3"]
    assert [entry.about for entry in entries] == [{"model": f"m{n}"} for n in (1, 2, 3)]
    assert entries[0].rows == 1
    assert entries[0].nbytes > 8000
    assert time.time() - entries[2].last_used == pytest.approx(3 * 3600, abs=60)


def test_opening_counts_as_use(three: Path) -> None:
    assert open_activations(three, "h3") is not None
    assert keys(three) == ["h3", "h1", "h2"]


def test_pruning_by_age_removes_what_was_not_used(three: Path) -> None:
    assert prune(three, older_than=1.5 * 3600) > 16_000
    assert keys(three) == ["h1"]


def test_pruning_to_a_size_keeps_the_last_used(three: Path) -> None:
    assert prune(three, until_below=20_000) > 8_000
    assert keys(three) == ["h1", "h2"]


def test_pruning_everything_leaves_what_is_not_ours(three: Path) -> None:
    prune(three, everything=True)
    assert names(three) == ["mine", "my own.activations", "notes.txt"]


def test_a_dry_run_removes_nothing(three: Path) -> None:
    assert prune(three, everything=True, dry_run=True) > 24_000
    assert keys(three) == ["h1", "h2", "h3"]


def test_pruning_without_more_removes_the_damaged_only(three: Path) -> None:
    (three / "h2.activations" / "0.values").write_bytes(b"")
    assert [entry.rows for entry in list_entries(three)].count(None) == 1
    prune(three)
    assert keys(three) == ["h1", "h3"]


def test_a_store_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert list_entries(tmp_path / "nowhere") == []
    assert prune(tmp_path / "nowhere", everything=True) == 0


def test_the_folder_is_the_one_asked_for_else_below_hf_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "hf_transfer" / "frozen"
    assert cache_folder("~/x") == Path.home() / "x"


def test_about_that_is_not_json_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_activations(
            tmp_path, "key", 1, iter(lambda: pytest.fail("computed"), None), {"date": object()}
        )


# The key

FACTS: dict[str, Any] = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "config": {"layers": 6, "act": "gelu", "rate": 0.1, "on": True, "none": None},
    "rows": ["ab", "c", b"raw"],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**FACTS, **changes}


def test_the_order_of_keys_does_not_change_the_digest() -> None:
    turned = {name: FACTS[name] for name in reversed(FACTS)} | {
        "config": dict(reversed(FACTS["config"].items()))
    }
    assert list(turned) != list(FACTS)
    assert digest(turned) == digest(FACTS)


def test_tuples_and_copies_and_memory_order_do_not_change_the_digest() -> None:
    weights = np.asfortranarray(FACTS["weights"]).astype(">f4")
    assert digest(changed(rows=tuple(FACTS["rows"]), weights=weights)) == digest(FACTS)


def test_every_kind_of_change_changes_the_digest() -> None:
    weights, flipped = FACTS["weights"], FACTS["weights"].copy()
    flipped.view(np.uint8).reshape(-1)[7] ^= 1
    others = [
        changed(weights=flipped),
        changed(weights=weights.T),
        changed(weights=weights.reshape(3, 2)),
        changed(weights=weights.view(np.int32)),
        changed(weights=weights.tolist()),
        changed(weights=weights.tobytes()),
        changed(rows=["ab", b"raw", "c"]),
        changed(rows=["a", "bc", b"raw"]),
        changed(rows=["abc", b"raw"]),
        changed(rows=["ab", "c", "raw"]),
        changed(rows=[["ab"], "c", b"raw"]),
        changed(rows=[]),
        changed(rows={}),
        changed(more=None),
        *(
            changed(config=FACTS["config"] | change)
            for change in ({"layers": 7}, {"layers": 6.0}, {"layers": "6"})
        ),
        *(
            changed(config=FACTS["config"] | change)
            for change in ({"on": 1}, {"none": 0}, {"none": ""}, {"none": "None"})
        ),
        *(
            changed(config=FACTS["config"] | change)
            for change in ({"rate": 0.1 + 2**-56}, {"rate": np.float32(0.1)})
        ),
        changed(config=FACTS["config"] | {"act": "gelu "}),
        {name: value for name, value in FACTS.items() if name != "rows"},
        {"rows2" if name == "rows" else name: value for name, value in FACTS.items()},
    ]
    assert len(others) == 26
    assert len({digest(facts) for facts in [FACTS, *others]}) == 27


def test_the_digest_is_the_same_in_another_process() -> None:
    code = "print(digest({'b': [1, 2.5, 'é'], 'a': np.arange(3)}))"
    assert finish(start(code)) == digest({"a": np.arange(3), "b": [1, 2.5, "é"]})


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        1j,
        Path("x"),
        object(),
        np.array([None]),
        np.array(["x"]),
        {1: 2, "1": 3},
        np.ma.masked_array([1, 2], [0, 1]),
        len,
    ],
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"no canonical form|not supported"):
        digest({"deep": [0, value]})


def test_members_of_an_enumeration_read_as_their_values() -> None:
    kind = enum.IntEnum("Kind", {"ONE": 1})
    assert digest({"kind": kind(1)}) == digest({"kind": 1})


def test_the_manifest_is_json_for_people(tmp_path: Path) -> None:
    path = store(tmp_path, model="tiny", boundary="head")
    assert json.loads((path / "manifest.json").read_text())["entry"]["about"] == {
        "model": "tiny",
        "boundary": "head",
    }


def test_the_log_names_what_is_damaged(
    tmp_path: Path, fresh: set[object], caplog: pytest.LogCaptureFixture
) -> None:
    path = store(tmp_path)
    os.truncate(path / "0.values", 5)
    with caplog.at_level(logging.WARNING):
        open_activations(tmp_path, "key")
    assert f"{path}: 0.values has 5 bytes instead of 168" in caplog.text
