"""Adapters through PEFT: small additions to the body learn, the new head is always trained and kept."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from hf_transfer.config.transfer import TransferConfig
from hf_transfer.errors import UserError, one_line, unknown

log = logging.getLogger(__name__)

# Methods of PEFT that a run of ours cannot use, and why.
NOT_OFFERED = {
    "adalora": "wants the number of steps in advance",
    "lily": "cannot be merged",
    "ln_tuning": "trains norms, which are no layers of these kinds",
    "poly": "wants the number of a task with every batch",
    "shadow": "wants to read the inside of a language model",
}

# The kinds of layers that are adapted, a layer to try a method on, wide enough for the blocks of all, and its input.
PROBES: dict[type[nn.Module], tuple[Callable[[], nn.Module], torch.Tensor]] = {
    nn.Linear: (lambda: nn.Linear(1024, 1024), torch.ones(1, 1024)),
    nn.Conv2d: (lambda: nn.Conv2d(64, 64, 3), torch.ones(1, 64, 8, 8)),
    Conv1D: (lambda: Conv1D(1024, 1024), torch.ones(1, 1024)),
}


def peft_methods() -> list[str]:
    """The methods of PEFT that add to the layers of a network and can be merged into them."""
    needed = {"target_modules", "modules_to_save"}
    kinds = {kind.value.lower(): settings for kind, settings in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return [
        name
        for name, kind in kinds.items()
        if needed <= {f.name for f in fields(kind)} and name not in NOT_OFFERED
    ]


def require_method(method: str, rank: int) -> None:
    """Raise UserError if there is no such method, a run of ours cannot use it, or not with this rank."""
    if method in NOT_OFFERED:
        raise UserError(
            f"--peft_method {method} is not offered: it {NOT_OFFERED[method]}",
            "lora fits most networks",
        )
    if method not in peft_methods():
        raise unknown("value of --peft_method", method, peft_methods())
    if not hasattr(_settings(method, rank), "r") and rank != TransferConfig.lora_rank:
        raise UserError(f"--peft_method {method} has no rank", f"leave out --lora_rank {rank}")


def require_loadable_method(method: str, rank: int) -> None:
    """Raise UserError if transformers cannot load an adapter of a method: some share tensors among their layers."""
    settings = _settings(method, rank)
    settings.target_modules = ["0"]
    try:
        inject_adapter_in_model(settings, nn.Sequential(PROBES[nn.Linear][0]()))
    except ValueError as error:
        raise UserError(
            f"--keep_adapter does not go with --peft_method {method}: {one_line(error)}",
            "leave out --keep_adapter",
        ) from error


def require_loadable(model: nn.Module) -> None:
    """Raise UserError if PEFT alone could not load an adapter of this network again."""
    own = next((type(module).__name__ for module in model.modules() if _is_own_make(module)), None)
    if own:
        raise UserError(
            f"--keep_adapter does not fit {type(model).__name__}: PEFT cannot load the adapter of its {own}",
            "leave out --keep_adapter: the merged model is a plain checkpoint",
        )


def wrap_with_adapter(
    model: Any, head: Sequence[str], method: str, rank: int, fixed: Collection[str] = ()
) -> PeftModel:
    """The model with an adapter of a PEFT method at every linear and convolutional layer below the head.

    `head` names the parameters that learn whole, PEFT keeps only what it is told to (modules_to_save); `rank` goes to
    methods that have one; what is `fixed` stays a part of the plain model. LoRA's scaling is 2 x rank, after Hu et al.
    2021 (arXiv 2106.09685) and PEFT's examples. Raises UserError for an unknown method, or one that fits no layer.
    """
    require_method(method, rank)
    learns_whole = sorted({name.rpartition(".")[0] for name in head})
    left_out = {name.rpartition(".")[0] for name in fixed}
    targets = {
        name: module
        for name, module in _targets(model, learns_whole).items()
        if name not in left_out
    }
    settings = _settings(method, rank)
    settings.modules_to_save = learns_whole
    if method == "lora":
        settings._register_custom_module(
            {type(module): _WeightLora for module in targets.values() if _is_own_make(module)}
        )
        if not targets:  # I-BERT has linear layers of its own make
            settings.target_parameters = _matrices(model, [*learns_whole, *left_out])
    else:
        fitting = [kind for kind in PROBES if _fits(method, rank, kind)]
        targets = {name: module for name, module in targets.items() if type(module) in fitting}
        if not targets:
            raise UserError(
                f"--peft_method {method} fits no layer of {type(model).__name__}",
                "lora fits most networks",
            )
        log.info(
            "%s adapts %d layers (%s)",
            method,
            len(targets),
            ", ".join(kind.__name__ for kind in fitting),
        )
    settings.target_modules = list(targets)
    try:
        wrapped = get_peft_model(model, settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"--peft_method {method} does not fit {type(model).__name__}: {one_line(error)}",
            "lora fits most networks",
        ) from error
    _put_back(wrapped, left_out)
    if all(
        ".modules_to_save." in name for name, p in wrapped.named_parameters() if p.requires_grad
    ):
        raise UserError(
            f"--peft_method {method} adapts nothing of {type(model).__name__}",
            "lora fits most networks",
        )
    _answer_for_wrapped_layers(wrapped)
    return wrapped


def _put_back(wrapped: PeftModel, paths: Collection[str]) -> None:
    """Replace the copies that PEFT made of some modules by the modules: it takes pre_classifier for classifier."""
    model = wrapped.get_base_model()
    for path in paths:
        module = model.get_submodule(path)
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(path, module.original_module)


def adapter_rates(wrapped: PeftModel, rates: Mapping[str, float]) -> dict[str, float]:
    """Name of each parameter that learns in a wrapped model -> the rate of what it adds to or stands for.

    `rates` are those of the plain model's parameters; an addition to a layer learns as the layer would.
    """
    of_layer = {name.rpartition(".")[0]: rate for name, rate in rates.items()}
    found = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            parts = name.removeprefix("base_model.model.").split(".")
            paths = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
            found[name] = next(of_layer[path] for path in paths if path in of_layer)
    return found


@dataclass(frozen=True)
class Adapter:
    """What was learned beside the weights of a base model, the head included: PEFT's settings and tensors by name."""

    settings: PeftConfig
    weights: dict[str, torch.Tensor]


def read_adapter(wrapped: PeftModel) -> Adapter:
    """A copy of what a wrapped model has learned so far."""
    weights = get_peft_model_state_dict(wrapped)
    return Adapter(
        wrapped.peft_config["default"],
        {name: t.detach().cpu().clone() for name, t in weights.items()},
    )


def save_adapter(
    adapter: Adapter,
    head: dict[str, torch.Tensor],
    base_model: tuple[str, str | None],
    folder: Path,
) -> None:
    """Write an adapter as PEFT does: adapter_config.json and adapter_model.safetensors.

    `head` is the head as it is now, by name of its parameters; `base_model` a Hub id and its revision, or a folder and
    None. To load it: AutoModelFor*.from_pretrained(base model, revision=..., id2label=...,
    ignore_mismatched_sizes=True), then load_adapter(folder), which brings the head.
    """
    settings = copy.copy(adapter.settings)
    settings.base_model_name_or_path, settings.revision = base_model
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    current = {
        f"base_model.model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in head.items()
    }
    save_file(adapter.weights | current, folder / "adapter_model.safetensors", {"format": "pt"})


def merge(wrapped: PeftModel) -> Any:
    """The plain model again, adapters added into its weights."""
    return wrapped.merge_and_unload()


def _settings(method: str, rank: int) -> PeftConfig:
    kind = next(
        settings
        for name, settings in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if name.value.lower() == method
    )
    known = {f.name for f in fields(kind)}
    wanted = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "alpha": 2 * rank,
        "oft_block_size": 0,
        "feedforward_modules": [],
    }
    try:
        return kind(**{name: value for name, value in wanted.items() if name in known})
    except (ValueError, TypeError) as error:
        raise UserError(
            f"--peft_method {method} does not take --lora_rank {rank}: {one_line(error)}",
            "8 and 16 fit most methods",
        ) from error


def _fits(method: str, rank: int, kind: type[nn.Module]) -> bool:
    """Whether a method takes layers of a kind, and merges them right.

    Tried on one layer, since a failure within the model would leave it torn. PEFT's OFT merges no convolution right.
    """
    settings = _settings(method, rank)
    settings.target_modules = ["0"]
    layer, inputs = PROBES[kind]
    generator = torch.Generator().manual_seed(0)
    try:
        wrapped = get_peft_model(nn.Sequential(layer()), settings)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
            expected = wrapped.eval()(inputs)
            return torch.allclose(wrapped.merge_and_unload()(inputs), expected, atol=1e-3)
    except (ValueError, TypeError, NotImplementedError, KeyError):
        return False


class _WeightLora(LoraConv2d):
    """LoRA of a convolution that changes its weight before it uses it: added to the weight, not to the output."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The convolution's own forward, with the adapted weight in place of its own."""
        layer = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return layer(x)
        added = sum(self.get_delta_weight(adapter) for adapter in self.active_adapters)
        return functional_call(layer, {"weight": layer.weight + added}, (x,))


def _targets(model: nn.Module, learns_whole: Sequence[str]) -> dict[str, nn.Module]:
    """The layers that take an adapter, by name: those whose weight is theirs alone.

    One that PEFT would mix up with the head (pre_classifier ends with classifier) learns whole with it.
    """
    shared = _shared_parameters(model)
    return {
        name: module
        for name, module in model.named_modules()
        if not any(name.endswith(whole) or name.startswith(f"{whole}.") for whole in learns_whole)
        and _takes_adapter(module)
        and id(module.weight) not in shared
    }


def _matrices(model: nn.Module, left_out: Sequence[str]) -> list[str]:
    """The two-dimensional parameters outside of some modules that are no embeddings."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
        and "embed" not in name
        and not any(name.startswith(f"{path}.") for path in left_out)
    ]


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters with two names: merging one layer's adapter would change the other layer."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {identity for identity, count in uses.items() if count > 1}


def _takes_adapter(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, Conv1D) or (isinstance(module, nn.Linear) and _is_linear(module))


def _is_linear(module: nn.Linear) -> bool:
    """Whether a layer does what its class says; the router of a mixture of experts is a Linear that answers more."""
    if type(module) is nn.Linear:
        return True
    inputs = torch.ones(
        1, module.in_features, device=module.weight.device, dtype=module.weight.dtype
    )
    with torch.no_grad():
        outputs = module(inputs)
    return isinstance(outputs, torch.Tensor) and torch.equal(
        outputs, F.linear(inputs, module.weight, module.bias)
    )


def _is_own_make(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward


def _answer_for_wrapped_layers(wrapped: PeftModel) -> None:
    """Give every wrapper the plain attributes of its layer: MobileNet asks a convolution for its stride."""
    for module in wrapped.modules():
        if isinstance(module, BaseTunerLayer):
            for name, value in vars(module.get_base_layer()).items():
                if not name.startswith("_") and not hasattr(module, name):
                    setattr(module, name, value)
