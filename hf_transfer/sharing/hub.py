"""Publish a run: one commit, an explicit list of files, no pickle, no token."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from hf_transfer.config.hub import HubTarget
from hf_transfer.errors import UserError, one_line
from hf_transfer.record import read_record
from hf_transfer.sharing.render import write_documents

log = logging.getLogger(__name__)
T = TypeVar("T")

TRIES = 4
FIRST_WAIT_S = 1.0
NEVER_PUBLISHED = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
)  # formats that run code when they are loaded


@dataclass(frozen=True)
class Published:
    """Where a run lies on the Hub: repository, commit, and the files of that commit."""

    repo_id: str
    revision: str
    url: str
    files: tuple[str, ...]


def full_name(target: HubTarget) -> str:
    """The id user/name of where a model is pushed; a name alone lies in the namespace of the one who is logged in.

    Raises UserError if nobody is: better before hours of training than after.
    """
    try:
        validate_repo_id(str(target.hub_model_id))
        user = _again(lambda: HfApi(token=target.hub_token).whoami())["name"]
    except HFValidationError as error:
        raise UserError(
            f"{target.hub_model_id!r} is no Hub id", "letters, digits, . _ - only, as user/name"
        ) from error
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            f"cannot push to {target.hub_model_id!r}: no valid Hub token",
            "`hf auth login`, or set HF_TOKEN",
        ) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"cannot push to {target.hub_model_id!r}: {one_line(error)}", "check the network"
        ) from error
    return (
        str(target.hub_model_id)
        if "/" in str(target.hub_model_id)
        else f"{user}/{target.hub_model_id}"
    )


def push(folder: Path, target: HubTarget) -> Published:
    """What was published: the files that the run's record lists, in one commit, README.md last.

    Safe to repeat: files that are there already are not sent again. Raises UserError if the folder is no run's, or
    the Hub refuses.
    """
    files = published_files(folder)
    name = full_name(target)
    record = read_record(folder / "record.json")
    if (
        record.card.name != name
    ):  # the card says how to load the model, by the name that it has on the Hub
        write_documents(replace(record, card=replace(record.card, name=name)), folder)
    api, branch = HfApi(token=target.hub_token), target.hub_revision
    try:
        url = _again(lambda: api.create_repo(name, private=target.hub_private_repo, exist_ok=True))
        if branch:
            _again(lambda: api.create_branch(url.repo_id, branch=branch, exist_ok=True))
        commit = _again(lambda: _commit(api, url.repo_id, folder, files, branch))
    except (BadRequestError, ValueError) as error:
        raise UserError(
            f"the Hub refused {target.hub_model_id!r}: {one_line(error)}", "mend it and push again"
        ) from error
    except (
        HTTPError,
        RuntimeError,
    ) as error:  # the client turns a refused upload into a RuntimeError
        raise UserError(
            f"cannot push to {target.hub_model_id!r}: {one_line(error)}",
            f"the run is whole in {str(folder)!r}; check your rights and use recipes/push_to_hub.py",
        ) from error
    log.info("published %s", commit.commit_url)
    return Published(url.repo_id, commit.oid, commit.commit_url, tuple(files))


def _commit(
    api: HfApi, repo_id: str, folder: Path, files: list[str], branch: str | None
) -> CommitInfo:
    # New operations at each call: they remember what the client did with them, and after a commit whose answer was
    # lost it must ask again which files are there already.
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files
    ]
    return api.create_commit(
        repo_id, operations, commit_message="Publish model, record and card", revision=branch
    )


def published_files(folder: Path, whole: bool = True) -> list[str]:
    """The paths below `folder` that belong to the run there, README.md last.

    Raises UserError if there is no run, its record lists what is not its own, or, with `whole`, a file is missing.
    """
    if not (folder / "record.json").is_file():
        raise UserError(
            f"{str(folder)!r} holds no run",
            "name a folder with a record.json, the output of a recipe",
        )
    files = read_record(folder / "record.json").model.files or []
    outside = [
        name for name in files if not (folder / name).resolve().is_relative_to(folder.resolve())
    ]
    if outside:
        raise UserError(
            f"the record of {str(folder)!r} lists {outside[0]!r}, which is not in it",
            "push your own runs",
        )
    missing = [name for name in files if not (folder / name).is_file()]
    if whole and missing:
        raise UserError(
            f"{str(folder)!r} lacks {missing[0]!r}", "run the recipe again, or restore the file"
        )
    settings = folder / "adapter_config.json"
    base = (
        json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if settings.is_file()
        else None
    )
    if whole and base and Path(base).is_absolute():
        raise UserError(
            f"nobody can load an adapter of {base!r} from the Hub",
            "run again without --keep_adapter",
        )
    pickles = [name for name in files if name.endswith(NEVER_PUBLISHED)]
    if pickles:
        raise UserError(f"{pickles[0]!r} may run code when it is loaded", "publish safetensors")
    return sorted(files, key=lambda name: (name == "README.md", name))


def _again(call: Callable[[], T]) -> T:
    """The call's answer; tried again after connection errors and 5xx or 429, which the client itself does not.

    Each call here may be repeated: creating what exists is allowed, and a commit whose files are there already is none.
    """
    for attempt in range(TRIES):
        try:
            return call()
        except HTTPError as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 503
            if attempt == TRIES - 1 or (status < 500 and status != 429):
                raise
            wait = FIRST_WAIT_S * 2**attempt
            log.warning("the Hub answered: %s; trying again in %.0f s", one_line(error), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")
