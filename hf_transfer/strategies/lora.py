"""Low-rank additions to the body's weights and the new head learn; Hu et al. 2021 (arXiv 2106.09685)."""

from hf_transfer.strategies.plan import Phase, Schedule


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """One phase with adapters, which are merged into the weights at its end."""
    return (Phase("lora", ("head", "body"), schedule.epochs, adapter="lora", adapter_rank=schedule.lora_rank),)
