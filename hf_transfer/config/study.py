"""Flags: what to compare (recipes/compare_strategies.py)."""

from dataclasses import dataclass

from hf_transfer.config.flag import flag
from hf_transfer.config.transfer import STRATEGY_NAMES


@dataclass(frozen=True)
class StudyConfig:
    """Strategies, numbers of labels, and draws of them."""

    _argument_group_name = "study"

    strategies: list[str] = flag(
        default_factory=lambda: list(STRATEGY_NAMES), help="Strategies to compare."
    )
    budgets: list[int] = flag(
        default_factory=lambda: [1, 10, 100], help="Numbers of labels per class to learn from."
    )
    draws: int = flag(
        3, "Number of random draws of these labels; seeds count up from --seed.", minimum=1
    )
