"""The endpoints of the loopback Hub that only read: users, repositories, revisions, files."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import parse_qs

from tests.hub.card_rules import read_metadata
from tests.hub.protocol import Answer, Call, Hub, Refusal, Routes, as_json
from tests.hub.repository_store import Commit, Repository, StoredFile, folders_of, is_below

ROUTES = Routes()
INFO_FROM_CARD = {
    "model": ("pipeline_tag", "library_name", "model-index"),
    "dataset": (),
    "space": (),
}


@ROUTES.add("GET", "/api/whoami-v2")
def whoami(hub: Hub, call: Call) -> Answer:
    if call.user is None:
        raise Refusal(401, "Invalid username or password.")
    token = {"displayName": "loopback", "role": call.user.role}
    return as_json(
        {
            "type": "user",
            "name": call.user.name,
            "fullname": call.user.name,
            "orgs": [{"name": name} for name in call.user.organizations],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


@ROUTES.add("GET", "{api}/auth-check")
def check_reader(hub: Hub, call: Call) -> Answer:
    hub.readable(call)
    return as_json({})


@ROUTES.add("GET", "{api}/auth-check/write")
def check_writer(hub: Hub, call: Call) -> Answer:
    hub.writable(call)
    return as_json({})


@ROUTES.add("GET", "{api}")
@ROUTES.add("GET", "{api}/revision/{rev}")
def describe_repository(hub: Hub, call: Call) -> Answer:
    """What is known of a repository at a revision; of a gated one too, whose files stay closed."""
    repository = hub.visible(call)
    commit = hub.commit_at(repository, call.names.get("rev", "main"))
    card = _read_card(hub, repository, commit)
    values = {
        "id": repository.repo_id,
        "author": repository.repo_id.split("/")[0],
        "sha": commit.oid,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": repository.disabled,
        "lastModified": commit.date,
        "createdAt": list(repository.history(commit))[-1].date,
        "downloads": 0,
        "likes": 0,
        "tags": [
            *(card.get("tags") or []),
            *([f"license:{card['license']}"] if "license" in card else []),
        ],
        "cardData": card,
        "siblings": [
            _describe_sibling(path, file, call.asks_for("blobs"))
            for path, file in commit.tree.items()
        ],
    }
    values |= {key: card[key] for key in INFO_FROM_CARD[repository.repo_type] if key in card}
    return as_json(values | ({"sdk": repository.sdk} if repository.sdk else {}))


def _read_card(hub: Hub, repository: Repository, commit: Commit) -> dict:
    readme = commit.tree.get("README.md")
    return read_metadata(hub.store.read(repository, readme).decode()) if readme else {}


def _describe_sibling(path: str, file: StoredFile, detailed: bool) -> dict:
    if not detailed:
        return {"rfilename": path}
    lfs = {"sha256": file.oid, "size": file.size, "pointerSize": len(file.pointer)}
    return {"rfilename": path, "size": file.size, "blobId": file.blob_id} | (
        {"lfs": lfs} if file.lfs else {}
    )


@ROUTES.add("GET", "{api}/refs")
def list_refs(hub: Hub, call: Call) -> Answer:
    repository = hub.visible(call)

    def describe(names: Mapping[str, str], prefix: str) -> list[dict]:
        return [
            {"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()
        ]

    branches, tags = (
        describe(repository.branches, "refs/heads/"),
        describe(repository.tags, "refs/tags/"),
    )
    return as_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@ROUTES.add("GET", "{api}/commits/{rev}")
def list_commits(hub: Hub, call: Call) -> Answer:
    repository = hub.visible(call)
    return as_json(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in repository.history(hub.commit_at(repository, call.names["rev"]))
        ]
    )


@ROUTES.add("GET", "{api}/tree/{rev}")
@ROUTES.add("GET", "{api}/tree/{rev}/{path}")
def list_tree(hub: Hub, call: Call) -> Answer:
    """The entries of a folder; an absent one is refused as an absent file is, which transformers relies on."""
    tree = hub.commit_at(hub.visible(call), call.names["rev"]).tree
    folder = PurePosixPath(call.names.get("path", ""))
    paths = [path for path in sorted({*tree, *folders_of(tree)}) if is_below(folder, path)]
    if not paths and folder.name:
        raise Refusal(404, f'{folder} does not exist on "{call.names["rev"]}"', "EntryNotFound")
    if not call.asks_for("recursive"):
        paths = [path for path in paths if PurePosixPath(path).parent == folder]
    return as_json([_describe_entry(path, tree.get(path)) for path in paths])


@ROUTES.add("POST", "{api}/paths-info/{rev}")
def describe_paths(hub: Hub, call: Call) -> Answer:
    """The entries at the paths of a form; absent ones are left out."""
    tree = hub.commit_at(hub.visible(call), call.names["rev"]).tree
    asked = [path.rstrip("/") for path in parse_qs(call.body.decode()).get("paths", [])]
    present = {*tree, *folders_of(tree)}
    return as_json([_describe_entry(path, tree.get(path)) for path in asked if path in present])


def _describe_entry(path: str, file: StoredFile | None) -> dict:
    if file is None:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    lfs = {"oid": file.oid, "size": file.size, "pointerSize": len(file.pointer)}
    entry = {"type": "file", "path": path, "oid": file.blob_id, "size": file.size}
    return entry | ({"lfs": lfs} if file.lfs else {})


@ROUTES.add("GET", "{page}/resolve/{rev}/{path}")
def download(hub: Hub, call: Call) -> Answer:
    repository = hub.readable(call)
    commit = hub.commit_at(repository, call.names["rev"])
    headers = {"X-Repo-Commit": commit.oid}
    file = commit.tree.get(call.names["path"])
    if file is None:
        # With the commit in the headers, the client remembers that the file is absent.
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    headers |= {
        "ETag": f'"{file.oid}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
    return _cut_range(
        Answer(200, hub.store.read(repository, file), headers), call.headers.get("Range")
    )


def _cut_range(whole: Answer, asked: str | None) -> Answer:
    """The part of an answer that a Range header asks for: `bytes=2-5`, `bytes=2-` or `bytes=-4`."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if not match:
        return whole
    first, last, size = match[1], match[2], len(whole.body)
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last) if first and last else size - 1, size - 1)
    if start > end:
        return Answer(416, b"", {**whole.headers, "Content-Range": f"bytes */{size}"})
    part = {"Content-Range": f"bytes {start}-{end}/{size}"}
    return Answer(206, whole.body[start : end + 1], {**whole.headers, **part})
