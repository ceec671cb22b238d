"""Download again what was published, and prove that it is equal."""

import hashlib
import logging
import tempfile
from pathlib import Path

from huggingface_hub import snapshot_download

from hf_transfer.errors import UserError
from hf_transfer.sharing.hub import Published

log = logging.getLogger(__name__)


def verify(published: Published, folder: Path, token: str | None = None) -> None:
    """Download the commit into an empty folder and compare every file's SHA-256 with the one in `folder`.

    Raises UserError naming the files that differ or are missing.
    """
    with tempfile.TemporaryDirectory() as temporary:
        snapshot_download(
            published.repo_id, revision=published.revision, local_dir=temporary, token=token
        )
        differing = [
            name
            for name in published.files
            if digest(Path(temporary) / name) != digest(folder / name)
        ]
    if differing:
        raise UserError(
            f"{published.repo_id} differs from {str(folder)!r} in {', '.join(differing)}",
            "push again and compare",
        )
    log.info(
        "verified: %d files of %s were downloaded again and are equal",
        len(published.files),
        published.repo_id,
    )


def digest(path: Path) -> str | None:
    """The SHA-256 of a file as hex, None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
