"""Flags: where a model is pushed."""

from dataclasses import dataclass

from hf_transfer.config.flag import flag


@dataclass(frozen=True)
class HubTarget:
    """A repository on the Hub."""

    hub_model_id: str | None = flag(None, "Repository: user/name, or a name in your own namespace.")
    hub_private_repo: bool | None = flag(None, "Whether a new repository is private.")
    hub_token: str | None = flag(
        None, "Access token. Default: the one of `hf auth login`.", repr=False
    )
    hub_revision: str | None = flag(None, "Branch to push to. Default: main.")


@dataclass(frozen=True)
class PushConfig(HubTarget):
    """What to publish, and where (recipes/push_to_hub.py)."""

    output_dir: str | None = flag(None, "Folder of a finished run.")
