"""Download what was published, and compare it with the files of the run."""

import hashlib
import logging
import tempfile
from pathlib import Path

from huggingface_hub import snapshot_download

from hf_transfer.errors import UserError
from hf_transfer.sharing.hub import Published

log = logging.getLogger(__name__)


def verify(published: Published, folder: Path, token: str | None = None) -> None:
    """Compare the SHA-256 of every file of the commit, downloaded anew, with that in `folder`.

    Raises UserError that names the files that differ or are missing.
    """
    repo_id = published.repo_id
    files = published.files
    with tempfile.TemporaryDirectory() as temporary:
        snapshot_download(repo_id, revision=published.revision, local_dir=temporary, token=token)
        downloaded = Path(temporary)
        differing = [name for name in files if digest(downloaded / name) != digest(folder / name)]
    if differing:
        raise UserError(
            f"{repo_id} differs from {str(folder)!r} in {', '.join(differing)}",
            "push again and compare",
        )
    log.info("verified: %d files of %s were downloaded and are equal", len(files), repo_id)


def digest(path: Path) -> str | None:
    """The SHA-256 of a file as hexadecimal digits; None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
