"""Small additions to the body's weights and the new head learn: LoRA, Hu et al. 2021 (arXiv 2106.09685), or its kin."""

from hf_transfer.strategies.plan import Phase, Schedule


def phases(schedule: Schedule) -> tuple[Phase, ...]:
    """One phase with adapters, which are merged into the weights at its end."""
    method, rank = schedule.peft_method, schedule.lora_rank
    return (Phase(method, ("head", "body"), schedule.epochs, adapter=method, adapter_rank=rank),)
