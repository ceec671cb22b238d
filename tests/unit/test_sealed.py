"""What the store and the training states do not test of sealed folders and files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_transfer.sealed import (
    DamageError,
    NotWrittenError,
    SealedFile,
    publish,
    read_manifest,
    report_disk_errors,
    staged_folder,
    write_atomically,
    write_manifest,
)


def _write(path: Path) -> None:
    with staged_folder(path) as stage:
        with SealedFile(stage / "data") as file:
            file.write(b"content")
            entry = file.seal()
        write_manifest(stage, {"files": [entry], "note": "größe"})
        publish(stage, path)


def _read(path: Path) -> dict[str, object]:
    return read_manifest(path, lambda contents: contents["files"])


def test_a_published_folder_is_complete_and_nothing_else_is_left(tmp_path: Path) -> None:
    _write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert _read(tmp_path / "folder")["note"] == "größe"


def test_a_folder_whose_writing_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").touch()  # its name is taken
    with pytest.raises(OSError, match="folder"):
        _write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_files_of_a_folder_are_always_verified(tmp_path: Path) -> None:
    _write(tmp_path / "folder")
    (tmp_path / "folder" / "data").write_bytes(b"c0ntent")
    with pytest.raises(DamageError, match="data is not what was written"):
        _read(tmp_path / "folder")


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '"entry"', '{"entry": 3}', '{"manifest": {}, "sha256": ""}', "\0"]
)
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, text: str) -> None:
    _write(tmp_path / "folder")
    (tmp_path / "folder" / "manifest.json").write_text(text)
    with pytest.raises(DamageError, match="its manifest"):
        _read(tmp_path / "folder")


def test_a_manifest_without_what_is_expected_is_damage(tmp_path: Path) -> None:
    _write(tmp_path / "folder")
    with pytest.raises(DamageError, match="its manifest cannot be read"):
        read_manifest(tmp_path / "folder", lambda contents: contents["columns"])


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda *_: pytest.fail("as if the process died"))
        with pytest.raises(pytest.fail.Exception):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, json.dumps("größe", ensure_ascii=False))
    assert path.read_text(encoding="utf-8") == '"größe"'
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_the_disk_name_what_was_written_and_the_cause(tmp_path: Path) -> None:
    with pytest.raises(NotWrittenError) as raised, report_disk_errors("x (12 bytes)"):
        (tmp_path / "none" / "x").touch()
    assert str(raised.value).startswith("x (12 bytes): [Errno 2]")


def test_errors_of_what_is_written_are_no_errors_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="requires grad"), report_disk_errors(tmp_path / "x"):
        raise RuntimeError("requires grad")


def test_what_a_dead_process_left_of_a_file_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from hf_transfer import sealed\n"
        "sealed.publish = lambda *_: os._exit(9)\n"
        "sealed.write_atomically(pathlib.Path(sys.argv[1]), 'new')\n"
    )
    path = tmp_path / "study.json"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert [each.suffix for each in tmp_path.iterdir()] == [".tmp"]
    write_atomically(path, "again")
    assert list(tmp_path.iterdir()) == [path]
