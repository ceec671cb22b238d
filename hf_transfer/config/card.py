"""Flags: what the model card says that no run can know."""

from dataclasses import dataclass

from hf_transfer.config.flag import flag


@dataclass(frozen=True)
class CardConfig:
    """Metadata of the model card."""

    _argument_group_name = "card"

    license: str | None = flag(
        None, "Licence of the model, an id of the Hub's list. Default: the base model's."
    )
    language: str | None = flag(None, "Language of the texts, an ISO 639 code.")
