"""The entries of the store: their sizes, the list, and what pruning removes."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from hf_transfer.store import entries
from hf_transfer.store.activations import estimate_bytes, open_activations
from hf_transfer.store.entries import list_entries, prune, resolve_cache_dir, room_for
from tests.unit.store.rows import make_rows, names, store

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


def test_existing_entries_count_against_the_limit(tmp_path: Path) -> None:
    store(tmp_path, rows=[{"x": np.zeros(25_000)}])
    why = room_for(tmp_path, 900_000, 0.001)
    assert why == "900.0 kB beside the 200.4 kB already there are more than --cache_limit_gb 0.001"


def test_a_disk_without_room_is_reported_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        entries.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 7e9, 2e9)
    )  # type: ignore[attr-defined]
    why = room_for(tmp_path / "not", 1_500_000_000, 100)
    assert why == f"1.5 GB are too much for a disk with 2.0 GB free at {tmp_path}"


# Listing and pruning


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Entries last used 1, 2 and 3 hours ago, and files that are not the store's."""
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
    listed = list_entries(three)
    assert [entry.key for entry in listed] == ["h1", "h2", "h3"]
    assert [entry.about for entry in listed] == [{"model": f"m{n}"} for n in (1, 2, 3)]
    assert listed[0].rows == 1
    assert listed[0].nbytes > 8000
    assert time.time() - listed[2].last_used == pytest.approx(3 * 3600, abs=60)


def test_opening_counts_as_use(three: Path) -> None:
    assert open_activations(three, "h3") is not None
    assert keys(three) == ["h3", "h1", "h2"]


def test_pruning_by_age_removes_entries_not_used_since(three: Path) -> None:
    assert prune(three, older_than=1.5 * 3600) > 16_000
    assert keys(three) == ["h1"]


def test_pruning_to_a_size_keeps_the_last_used(three: Path) -> None:
    assert prune(three, until_below=20_000) > 8_000
    assert keys(three) == ["h1", "h2"]


def test_pruning_everything_leaves_other_files_alone(three: Path) -> None:
    prune(three, everything=True)
    assert names(three) == ["mine", "my own.activations", "notes.txt"]


def test_a_dry_run_removes_nothing(three: Path) -> None:
    assert prune(three, everything=True, dry_run=True) > 24_000
    assert keys(three) == ["h1", "h2", "h3"]


def test_pruning_without_options_removes_damaged_entries_only(three: Path) -> None:
    (three / "h2.activations" / "0.values").write_bytes(b"")
    assert [entry.rows for entry in list_entries(three)].count(None) == 1
    prune(three)
    assert keys(three) == ["h1", "h3"]


def test_a_store_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert list_entries(tmp_path / "nowhere") == []
    assert prune(tmp_path / "nowhere", everything=True) == 0


def test_the_cache_dir_is_the_given_one_else_below_hf_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert resolve_cache_dir(None) == tmp_path / "hf_transfer" / "frozen"
    assert resolve_cache_dir("~/x") == Path.home() / "x"
