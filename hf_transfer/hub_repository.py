"""A Hub repository at one commit, with its licence, or in one line why it cannot be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, errors

from hf_transfer.errors import UserError, one_line

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. `license` is None if its card names none."""

    id: str
    revision: str
    license: str | None


def find_repository(repo_id: str, kind: Kind, revision: str | None = None) -> Repository:
    """Repository at the commit that `revision` (branch, tag, commit; default main) names now.

    Falls back to the local cache where the Hub cannot be reached. Raises UserError if it does not
    exist, this user has no access, it has no such revision, or it is neither reachable nor cached.
    """
    try:
        api = HfApi()
        read_info = api.model_info if kind == "model" else api.dataset_info
        info = read_info(repo_id, revision=revision)
        if info.gated:  # its page is open to everybody, its files are not
            api.auth_check(repo_id, repo_type=kind)
    except errors.HFValidationError as error:
        raise UserError(
            f"{repo_id!r} is neither an existing path nor a Hub id", "check the spelling"
        ) from error
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        raise UserError(
            f"the {kind} {repo_id!r} is gated", f"ask for access at {page}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"no {kind} {repo_id!r} here or on the Hub",
            "check the spelling; if it is private, `hf auth login` first",
        ) from error
    except errors.RevisionNotFoundError as error:
        flag = "--model_revision" if kind == "model" else "--dataset_revision"
        raise UserError(
            f"the {kind} {repo_id!r} has no revision {revision!r}", f"check {flag}"
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return _cached(repo_id, kind, revision or "main", one_line(error))
        raise UserError(
            f"the Hub refused {repo_id!r}: {one_line(error)}", "check your token: `hf auth whoami`"
        ) from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        return _cached(repo_id, kind, revision or "main", one_line(error))
    card = info.card_data
    return Repository(info.id, str(info.sha), card.get("license") if card else None)


def card_license(folder: Path) -> str | None:
    """Licence that a folder's README.md names, or None."""
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    return ModelCard.load(path).data.get("license") if path.is_file() else None


def _cached(repo_id: str, kind: Kind, revision: str, reason: str) -> Repository:
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo_id.replace('/', '--')}"
    ref = folder / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        raise UserError(
            f"the Hub cannot be reached ({reason}), and the {kind} {repo_id!r} is not in the cache",
            "check the network, or name a local folder or builtin:NAME",
        )
    return Repository(repo_id, commit, card_license(snapshot))
