"""Flags: where cached activations are stored. They do not change what is learned."""

from dataclasses import dataclass
from typing import Literal

from hf_transfer.config.flag import flag


@dataclass(frozen=True)
class CacheConfig:
    """The store of what is computed once."""

    _argument_group_name = "cache"

    cache_frozen: bool = flag(
        True, "Compute frozen layers once and cache their activations for later runs."
    )
    cache_inputs: Literal["auto", "true", "false"] = flag(
        "auto",
        "Decode and resize images, and tokenize texts, once and cache the result. auto: where "
        "that is possible; true: with a warning where it is not.",
    )
    cache_dir: str | None = flag(
        None, "Folder of what is cached. Default: hf_transfer/frozen below HF_HOME."
    )
    cache_limit_gb: float = flag(
        20.0, "Maximum size of the folder of what is cached, in GB.", above=0
    )
