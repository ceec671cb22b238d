import pytest

from hf_transfer import sealed


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> set[object]:
    """The files that a new process has verified: none. Clear it to be a newer one."""
    files: set[object] = set()
    monkeypatch.setattr(sealed, "verified_files", files)
    return files
