"""Publish a run: one commit, an explicit list of files, no pickle, no token."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, errors
from huggingface_hub.utils import validate_repo_id

from hf_transfer.config.hub import HubTarget
from hf_transfer.errors import UserError, one_line
from hf_transfer.record import read_record
from hf_transfer.sharing.render import write_documents

log = logging.getLogger(__name__)
T = TypeVar("T")

TRIES = 4
FIRST_WAIT_S = 1.0
# Formats that run code when they are loaded.
NEVER_PUBLISHED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Published:
    """A run on the Hub: repository, commit, and the files of that commit."""

    repo_id: str
    revision: str
    url: str
    files: tuple[str, ...]


def full_name(target: HubTarget) -> str:
    """The id user/name to push to; a name alone is in the namespace of the user who is logged in.

    Raises UserError for an invalid id, and if nobody is logged in: better before hours of training
    than after.
    """
    name = str(target.hub_model_id)
    cannot = f"cannot push to {target.hub_model_id!r}"
    try:
        validate_repo_id(name)
        user = _retry(lambda: HfApi(token=target.hub_token).whoami())["name"]
    except errors.HFValidationError as error:
        raise UserError(
            f"{target.hub_model_id!r} is no Hub id", "letters, digits, . _ - only, as user/name"
        ) from error
    except (errors.LocalTokenNotFoundError, errors.HfHubHTTPError) as error:
        hint = "`hf auth login`, or set HF_TOKEN"
        raise UserError(f"{cannot}: no valid Hub token", hint) from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"{cannot}: {one_line(error)}", "check the network") from error
    return name if "/" in name else f"{user}/{name}"


def push(folder: Path, target: HubTarget) -> Published:
    """The commit that was made: the files that the record of the run lists, README.md last.

    It can be repeated: files that are on the Hub already are not sent again. Raises UserError if
    the folder holds no run, or the Hub refuses it.
    """
    files = published_files(folder)
    name = full_name(target)
    record = read_record(folder / "record.json")
    if record.card.name != name:  # the card loads the model by its name on the Hub
        card = replace(record.card, name=name, location=None)
        write_documents(replace(record, card=card), folder)
    api = HfApi(token=target.hub_token)
    branch = target.hub_revision
    try:
        url = _retry(lambda: api.create_repo(name, private=target.hub_private_repo, exist_ok=True))
        if branch:
            _retry(lambda: api.create_branch(url.repo_id, branch=branch, exist_ok=True))
        commit = _retry(lambda: _commit(api, url.repo_id, folder, files, branch))
    except (errors.BadRequestError, ValueError) as error:
        raise UserError(
            f"the Hub refused {target.hub_model_id!r}: {one_line(error)}", "fix it and push again"
        ) from error
    except (
        errors.HTTPError,
        RuntimeError,
    ) as error:  # the client raises the latter at refused uploads
        raise UserError(
            f"cannot push to {target.hub_model_id!r}: {one_line(error)}",
            f"the run in {str(folder)!r} is complete; check your rights and use "
            "recipes/push_to_hub.py",
        ) from error
    log.info("published %s", commit.commit_url)
    return Published(url.repo_id, commit.oid, commit.commit_url, tuple(files))


def _commit(
    api: HfApi, repo_id: str, folder: Path, files: list[str], branch: str | None
) -> CommitInfo:
    # New operations at each try: they hold the state of an upload, and after a commit whose
    # response was lost the client must look again which files are on the Hub.
    operations = list(map(CommitOperationAdd, files, map(folder.joinpath, files)))
    message = "Publish model, record and card"
    return api.create_commit(repo_id, operations, commit_message=message, revision=branch)


def published_files(folder: Path, complete: bool = True) -> list[str]:
    """Paths below `folder` of the files of its run, README.md last.

    Raises UserError if there is no run, if its record lists a file outside or a pickle, or, with
    `complete`, if a file is missing or an adapter has a base model that others cannot load.
    """
    path = folder / "record.json"
    files = read_record(path).model.files if path.is_file() else None
    if not files:
        raise UserError(
            f"{str(folder)!r} holds no run",
            "name a folder with a record.json, the output of a recipe",
        )
    for name in files:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"the record of {str(folder)!r} lists {name!r}, which is not in it",
                "push your own runs",
            )
    if complete:
        _require_complete(folder, files)
    for name in files:
        if name.endswith(NEVER_PUBLISHED):
            raise UserError(f"{name!r} may run code when it is loaded", "publish safetensors")
    return sorted(files, key=lambda name: (name == "README.md", name))


def _require_complete(folder: Path, files: list[str]) -> None:
    for name in files:
        if not (folder / name).is_file():
            hint = "run the recipe again, or restore the file"
            raise UserError(f"{str(folder)!r} lacks {name!r}", hint)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if base and Path(base).is_absolute():
            raise UserError(
                f"nobody can load an adapter of {base!r} from the Hub",
                "run again without --keep_adapter",
            )


def _retry(call: Callable[[], T]) -> T:
    """The result of a call, tried again after connection errors and the statuses 5xx and 429.

    The client itself does not try again. All these calls can be repeated: creating what exists is
    allowed, and a commit whose files are on the Hub already is empty.
    """
    for attempt in range(TRIES):
        try:
            return call()
        except errors.HTTPError as error:
            status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 503
            if attempt == TRIES - 1 or (status < 500 and status != 429):
                raise
            wait = FIRST_WAIT_S * 2**attempt
            log.warning("the Hub answered: %s; trying again in %.0f s", one_line(error), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")
