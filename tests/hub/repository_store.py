"""What the loopback Hub remembers: repositories below a folder, each a JSON of its commits and a folder of blobs."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath


def git_oid(content: bytes) -> str:
    """The name that git gives to a blob: a SHA-1 over a short header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit; `oid` names its blob: the SHA-256 of an LFS file, the git SHA-1 of a regular one."""

    oid: str
    size: int
    lfs: bool

    @property
    def pointer(self) -> bytes:
        """What git itself keeps of an LFS file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n".encode()

    @property
    def blob_id(self) -> str:
        """The git oid of what git keeps: the content of a regular file, the pointer of an LFS file."""
        return git_oid(self.pointer) if self.lfs else self.oid


@dataclass(frozen=True)
class Message:
    title: str
    description: str
    author: str


@dataclass(frozen=True)
class Commit:
    """A commit; `files` are the paths that it wrote or deleted, `tree` is all that there is after it."""

    oid: str
    title: str
    description: str
    author: str
    date: str
    parent: str | None
    files: tuple[str, ...]
    tree: Mapping[str, StoredFile]


@dataclass(frozen=True)
class Repository:
    repo_type: str
    repo_id: str
    private: bool = False
    gated: str | bool = False
    disabled: bool = False
    sdk: str | None = None
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    commits: Mapping[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a full commit id names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.commits.get(self.branches.get(name) or self.tags.get(name) or name)

    def history(self, commit: Commit | None) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        while commit is not None:
            yield commit
            commit = self.commits.get(commit.parent) if commit.parent else None

    def with_commit(
        self, branch: str, message: Message, changes: Mapping[str, StoredFile | None]
    ) -> "Repository":
        """This repository with one commit more; `changes` maps a path to its new file, or to None when deleted."""
        parent = self.commits.get(self.branches.get(branch, ""))
        after = {**(parent.tree if parent else {}), **changes}
        tree = {path: after[path] for path in sorted(after) if after[path] is not None}
        seed = [
            parent and parent.oid,
            asdict(message),
            {path: tree[path].oid for path in tree},
            time.time_ns(),
        ]
        commit = Commit(
            oid=hashlib.sha1(json.dumps(seed).encode()).hexdigest(),
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            parent=parent and parent.oid,
            files=tuple(changes),
            tree=tree,
            **asdict(message),
        )
        return replace(
            self,
            commits={**self.commits, commit.oid: commit},
            branches={**self.branches, branch: commit.oid},
        )


def folders_of(tree: Mapping[str, StoredFile]) -> set[str]:
    """All folders that the paths of a tree go through."""
    return {str(parent) for path in tree for parent in PurePosixPath(path).parents} - {"."}


def is_below(folder: PurePosixPath, path: str) -> bool:
    """Whether a path lies anywhere below a folder; the root is PurePosixPath("")."""
    return folder in PurePosixPath(path).parents


class RepositoryStore:
    """Repositories on disk: `{folder}/{type}/{namespace}/{name}/repository.json` and `blobs/` beside it.

    Blobs are kept by repository, so that a test that pushes what another test has pushed still uploads it.
    Hold `lock` from reading a repository to saving it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()

    def find(self, repo_type: str, repo_id: str) -> Repository | None:
        """The repository as it was saved last, or None."""
        path = self._home(repo_type, repo_id) / "repository.json"
        return _from_json(json.loads(path.read_text())) if path.exists() else None

    def save(self, repository: Repository) -> None:
        home = self._home(repository.repo_type, repository.repo_id)
        _write_whole(home / "repository.json", json.dumps(asdict(repository), indent=1).encode())

    def delete(self, repository: Repository) -> None:
        shutil.rmtree(self._home(repository.repo_type, repository.repo_id))

    def add_regular(self, repository: Repository, content: bytes) -> StoredFile:
        """The stored file of a content that git keeps whole."""
        file = StoredFile(git_oid(content), len(content), lfs=False)
        _write_whole(self._blob(repository, file.oid), content)
        return file

    def add_lfs(self, repository: Repository, content: bytes) -> StoredFile:
        """The stored file of a content that goes by its SHA-256."""
        file = StoredFile(hashlib.sha256(content).hexdigest(), len(content), lfs=True)
        _write_whole(self._blob(repository, file.oid), content)
        return file

    def find_lfs(self, repository: Repository, oid: str) -> StoredFile | None:
        """The uploaded LFS file of this SHA-256, whether or not a commit has it; else None."""
        path = self._blob(repository, oid)
        return StoredFile(oid, path.stat().st_size, lfs=True) if path.exists() else None

    def read(self, repository: Repository, file: StoredFile) -> bytes:
        return self._blob(repository, file.oid).read_bytes()

    def _home(self, repo_type: str, repo_id: str) -> Path:
        return self.folder / repo_type / repo_id

    def _blob(self, repository: Repository, oid: str) -> Path:
        return self._home(repository.repo_type, repository.repo_id) / "blobs" / oid


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)


def _from_json(values: dict) -> Repository:
    commits = {
        oid: Commit(
            **{
                **commit,
                "files": tuple(commit["files"]),
                "tree": {path: StoredFile(**file) for path, file in commit["tree"].items()},
            }
        )
        for oid, commit in values["commits"].items()
    }
    return Repository(**{**values, "commits": commits})
