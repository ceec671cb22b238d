"""The endpoints of the loopback Hub that change something: repositories, revisions, uploads, commits."""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from tests.hub.card_rules import check_card
from tests.hub.protocol import Answer, Call, Hub, Refusal, Routes, as_json
from tests.hub.repository_store import Message, Repository, StoredFile, is_below

ROUTES = Routes()
SECRET = secrets.token_bytes()
LFS_FROM_BYTES = 10 * 1024 * 1024
LFS_SUFFIXES = (
    ".arrow",
    ".bin",
    ".gz",
    ".npz",
    ".onnx",
    ".parquet",
    ".png",
    ".pt",
    ".safetensors",
    ".wav",
    ".zip",
)
GIT_ATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()

# --- repositories


@ROUTES.add("POST", "/api/repos/create")
def create_repository(hub: Hub, call: Call) -> Answer:
    wanted, repo_type, repo_id = _read_names(call)
    hub.require_writer(call.user, repo_id)
    url = hub.page(repo_type, repo_id)
    if hub.store.find(repo_type, repo_id):
        taken = Refusal(409, f"You already created this {repo_type} repo")
        taken.body["url"] = url  # read by the client from this very answer when exist_ok=True
        raise taken
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]{0,95}", repo_id):
        raise Refusal(400, f"Invalid repository name: {repo_id}")
    if repo_type == "space" and "sdk" not in wanted:
        raise Refusal(400, "A Space needs an sdk")
    repository = Repository(repo_type, repo_id, private=_is_private(wanted), sdk=wanted.get("sdk"))
    attributes = hub.store.add_regular(repository, GIT_ATTRIBUTES)
    message = Message("initial commit", "", call.user.name)
    hub.store.save(repository.with_commit("main", message, {".gitattributes": attributes}))
    return as_json({"url": url, "name": repo_id, "id": repo_id})


@ROUTES.add("DELETE", "/api/repos/delete")
def delete_repository(hub: Hub, call: Call) -> Answer:
    _, repo_type, repo_id = _read_names(call)
    hub.store.delete(hub.writable(replace(call, names={"kind": f"{repo_type}s", "id": repo_id})))
    return as_json({})


def _read_names(call: Call) -> tuple[dict, str, str]:
    wanted = call.json()
    namespace = wanted.get("organization") or (call.user.name if call.user else "")
    return wanted, wanted.get("type", "model"), f"{namespace}/{wanted.get('name')}"


def _is_private(wanted: Mapping, default: bool = False) -> bool:
    """Whether a payload asks for privacy: by `visibility` since client 2, by `private` before."""
    if "visibility" in wanted:
        return wanted["visibility"] == "private"
    return bool(wanted.get("private", default))


@ROUTES.add("PUT", "{api}/settings")
def change_settings(hub: Hub, call: Call) -> Answer:
    repository, wanted = hub.writable(call), call.json()
    private = _is_private(wanted, default=repository.private)
    hub.store.save(
        replace(repository, private=private, gated=wanted.get("gated", repository.gated))
    )
    return as_json({"private": private})


# --- revisions


@ROUTES.add("POST", "{api}/branch/{name}")
def create_branch(hub: Hub, call: Call) -> Answer:
    repository, name = hub.writable(call), call.names["name"]
    if name in repository.branches:
        raise Refusal(409, f"Reference already exists: refs/heads/{name}")
    start = hub.commit_at(repository, call.json().get("startingPoint", "main"))
    hub.store.save(replace(repository, branches={**repository.branches, name: start.oid}))
    return as_json({})


@ROUTES.add("DELETE", "{api}/branch/{name}")
def delete_branch(hub: Hub, call: Call) -> Answer:
    repository, name = hub.writable(call), call.names["name"]
    if name == "main":
        raise Refusal(403, "The branch main cannot be deleted")
    hub.store.save(replace(repository, branches=_without(repository.branches, name)))
    return as_json({})


@ROUTES.add("POST", "{api}/tag/{rev}")
def create_tag(hub: Hub, call: Call) -> Answer:
    repository, name = hub.writable(call), call.json()["tag"]
    if name in repository.tags:
        raise Refusal(409, f"Reference already exists: refs/tags/{name}")
    target = hub.commit_at(repository, call.names["rev"])
    hub.store.save(replace(repository, tags={**repository.tags, name: target.oid}))
    return as_json({})


@ROUTES.add("DELETE", "{api}/tag/{name}")
def delete_tag(hub: Hub, call: Call) -> Answer:
    repository = hub.writable(call)
    hub.store.save(replace(repository, tags=_without(repository.tags, call.names["name"])))
    return as_json({})


def _without(references: Mapping[str, str], name: str) -> dict[str, str]:
    if name not in references:
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return {other: oid for other, oid in references.items() if other != name}


# --- uploads


@ROUTES.add("POST", "/api/validate-yaml")
def validate_card(hub: Hub, call: Call) -> Answer:
    wanted = call.json()
    errors, warnings = check_card(wanted["content"], wanted.get("repoType") or "model")
    body = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    return as_json(body, 400 if errors else 200)


@ROUTES.add("POST", "{api}/preupload/{rev}")
def choose_upload_modes(hub: Hub, call: Call) -> Answer:
    """How each file is to be sent, and its present oid, by which the client drops what has not changed."""
    tree = hub.commit_at(hub.writable(call), call.names["rev"]).tree

    def choose(path: str, size: int) -> dict:
        lfs = size > LFS_FROM_BYTES or PurePosixPath(path).suffix in LFS_SUFFIXES
        mode = {
            "path": path,
            "uploadMode": "lfs" if lfs and size else "regular",
            "shouldIgnore": False,
        }
        return mode | ({"oid": tree[path].oid} if path in tree else {})

    return as_json({"files": [choose(file["path"], file["size"]) for file in call.json()["files"]]})


@ROUTES.add("POST", "{page}.git/info/lfs/objects/batch")
def plan_uploads(hub: Hub, call: Call) -> Answer:
    """Where to PUT each LFS object; one that is stored already has no actions."""
    repository = hub.writable(call)
    verify = {"href": f"{hub.page(call.repo_type, call.repo_id)}.git/info/lfs/objects/verify"}

    def plan(item: dict) -> dict:
        if hub.store.find_lfs(repository, item["oid"]):
            return item
        place = f"/lfs/{call.repo_type}s/{call.repo_id}/{item['oid']}"
        return item | {
            "actions": {
                "upload": {"href": f"{hub.url}{place}?key={_sign(place)}"},
                "verify": verify,
            }
        }

    objects = [plan({"oid": item["oid"], "size": item["size"]}) for item in call.json()["objects"]]
    return as_json({"transfer": "basic", "objects": objects})


@ROUTES.add("PUT", "/lfs/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)/{name}")
def store_object(hub: Hub, call: Call) -> Answer:
    """Keeps an LFS object. The right to send it is the key in the address: the client sends no token here."""
    oid = call.names["name"]
    if call.query.get("key") != [_sign(f"/lfs/{call.names['kind']}/{call.repo_id}/{oid}")]:
        raise Refusal(403, "This address has expired")
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise Refusal(400, "The content does not have the SHA-256 of its address")
    repository = hub.store.find(call.repo_type, call.repo_id)
    if repository is None:
        raise Refusal(404, "Repository not found", "RepoNotFound")
    hub.store.add_lfs(repository, call.body)
    return Answer()


@ROUTES.add("POST", "{page}.git/info/lfs/objects/verify")
def verify_object(hub: Hub, call: Call) -> Answer:
    wanted, repository = call.json(), hub.writable(call)
    _find_object(hub, repository, wanted["oid"], wanted["size"])
    return as_json({})


def _sign(place: str) -> str:
    return hmac.new(SECRET, place.encode(), "sha256").hexdigest()


def _find_object(hub: Hub, repository: Repository, oid: str, size: int | None) -> StoredFile:
    stored = hub.store.find_lfs(repository, oid)
    if stored is None or size not in (None, stored.size):
        raise Refusal(400, f"The LFS object {oid} of {size} bytes has not been uploaded")
    return stored


# --- commits


@ROUTES.add("POST", "{api}/commit/{rev}")
def create_commit(hub: Hub, call: Call) -> Answer:
    """Publishes the lines of a commit, all or none."""
    repository, branch = hub.writable(call), call.names["rev"]
    if call.asks_for("create_pr"):
        raise Refusal(501, "The loopback Hub has no pull requests")
    if branch not in repository.branches:
        raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    tip = repository.commits[repository.branches[branch]]
    header, *lines = call.lines()
    expected = header["value"].get("parentCommit", tip.oid)
    if len(expected) < 5 or not tip.oid.startswith(expected):
        raise Refusal(412, f"The tip of {branch} is {tip.oid}, not {expected}")
    changes = _read_deletions(lines, tip.tree) | _read_additions(hub, repository, lines)
    _refuse_bad_card(hub, repository, changes.get("README.md"))
    message = Message(
        header["value"]["summary"], header["value"].get("description", ""), call.user.name
    )
    after = repository.with_commit(branch, message, changes)
    hub.store.save(after)
    oid = after.branches[branch]
    url = f"{hub.page(call.repo_type, call.repo_id)}/commit/{oid}"
    return as_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def _read_deletions(lines: list[dict], tree: Mapping[str, StoredFile]) -> dict[str, None]:
    gone: dict[str, None] = {}
    for line in lines:
        if line["key"] not in ("deletedFile", "deletedFolder"):
            continue
        target = line["value"]["path"].rstrip("/")
        found = [path for path in tree if path == target or is_below(PurePosixPath(target), path)]
        if not found or (line["key"] == "deletedFile" and found != [target]):
            raise Refusal(404, f"A file with this name doesn't exist: {target}", "EntryNotFound")
        gone |= dict.fromkeys(found)
    return gone


def _read_additions(hub: Hub, repository: Repository, lines: list[dict]) -> dict[str, StoredFile]:
    added = {}
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            added[value["path"]] = hub.store.add_regular(
                repository, base64.b64decode(value["content"])
            )
        elif line["key"] == "lfsFile":
            # A copy within the repository comes without a size.
            added[value["path"]] = _find_object(hub, repository, value["oid"], value.get("size"))
    return added


def _refuse_bad_card(hub: Hub, repository: Repository, readme: StoredFile | None) -> None:
    if readme is None:
        return
    errors, _ = check_card(hub.store.read(repository, readme).decode(), repository.repo_type)
    if errors:
        raise Refusal(
            400, "Your commit was refused for the metadata of README.md: " + "; ".join(errors)
        )
