"""Flags: where a model is pushed."""

from dataclasses import dataclass

from hf_transfer.config.flag import flag


@dataclass(frozen=True)
class HubTarget:
    """A repository on the Hub."""

    hub_model_id: str | None = flag(
        None, help="Repository: user/name, or a name in your own namespace."
    )
    hub_private_repo: bool | None = flag(None, help="Whether a new repository is private.")
    hub_token: str | None = flag(
        None, help="Access token. Default: the one of `hf auth login`.", repr=False
    )
    hub_revision: str | None = flag(None, help="Branch to push to. Default: main.")


@dataclass(frozen=True)
class PushConfig(HubTarget):
    """What to publish, and where (recipes/push_to_hub.py)."""

    output_dir: str | None = flag(None, help="Folder of a finished run.")
