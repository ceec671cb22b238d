"""LoRA adapters through PEFT, the new head always trained and kept."""

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hf_transfer.errors import UserError


def wrap_with_adapter(model: Any, new_parameters: Sequence[str], method: str, rank: int) -> PeftModel:
    """The model with an adapter of `rank` at every linear and convolutional layer below the head.

    The head is named by `new_parameters`, never guessed: PEFT keeps it only if told (modules_to_save). Scaling is
    2 x rank, after Hu et al. 2021 (arXiv 2106.09685) and PEFT's examples.
    """
    head = sorted({name.rpartition(".")[0] for name in new_parameters})
    targets = [name for name, module in model.named_modules() if _takes_adapter(module) and not _within(name, head)]
    if not targets:
        raise UserError("the model has no layer below its head that LoRA fits", "use --strategy head or full")
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=head)
    return get_peft_model(model, settings)


def merge(wrapped: PeftModel) -> Any:
    """The plain model again, adapters added into its weights."""
    return wrapped.merge_and_unload()


def _takes_adapter(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def _within(name: str, heads: Sequence[str]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)
