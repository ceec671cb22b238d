"""Adapters with PEFT: small additions to the layers are trained, with the complete new head."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, filterfalse
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel
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
from hf_transfer.models.head import below, innermost, owner, owners

log = logging.getLogger(__name__)

# Methods of PEFT that a run cannot use, and why.
NOT_OFFERED = {
    "adalora": "needs the number of steps in advance",
    "lily": "cannot be merged",
    "ln_tuning": "trains norms, which are no layers of these kinds",
    "poly": "needs the number of a task with every batch",
    "shadow": "needs the inside of a language model",
}

# The kinds of layers that take adapters, each with a layer to try a method on and an input for it.
# The layers are wide enough for the blocks of all methods.
TRIAL_LAYERS: dict[type[nn.Module], tuple[Callable[[], nn.Module], torch.Tensor]] = {
    nn.Linear: (lambda: nn.Linear(1024, 1024), torch.ones(1, 1024)),
    nn.Conv2d: (lambda: nn.Conv2d(64, 64, 3), torch.ones(1, 64, 8, 8)),
    Conv1D: (lambda: Conv1D(1024, 1024), torch.ones(1, 1024)),
}


# --- methods ---

# Method -> PEFT's dataclass of its settings.
SETTINGS = {kind.value.lower(): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def peft_methods() -> list[str]:
    """The methods of PEFT that add to the layers of a network and can be merged into them."""
    required = {"target_modules", "modules_to_save"}
    fitting = (name for name, cls in SETTINGS.items() if required <= set(cls.__dataclass_fields__))
    return list(filterfalse(NOT_OFFERED.__contains__, fitting))


def require_method(method: str, rank: int) -> None:
    """Raise UserError if a method is unknown, not offered, or does not take the rank."""
    if method in NOT_OFFERED:
        raise _misfit(method, f"is not offered: it {NOT_OFFERED[method]}")
    if method not in peft_methods():
        raise unknown("value of --peft_method", method, peft_methods())
    if not hasattr(_settings(method, rank), "r") and rank != TransferConfig.lora_rank:
        raise UserError(f"--peft_method {method} has no rank", f"leave out --lora_rank {rank}")


def require_loadable_method(method: str, rank: int) -> None:
    """Raise UserError if transformers cannot load a method's adapter: some share tensors."""
    settings = _settings(method, rank)
    settings.target_modules = ["0"]
    make_layer, _ = TRIAL_LAYERS[nn.Linear]
    try:
        peft.inject_adapter_in_model(settings, nn.Sequential(make_layer()))
    except ValueError as error:
        raise UserError(
            f"--keep_adapter does not go with --peft_method {method}: {one_line(error)}",
            "leave out --keep_adapter",
        ) from error


def require_loadable(model: nn.Module) -> None:
    """Raise UserError if PEFT alone could not load an adapter of this network again."""
    custom = next(filter(_is_custom_conv, model.modules()), None)
    if custom is not None:
        raise UserError(
            f"--keep_adapter does not fit {type(model).__name__}: PEFT cannot load the adapter of "
            f"its {type(custom).__name__}",
            "leave out --keep_adapter: the merged model is a plain checkpoint",
        )


def _misfit(method: str, reason: str) -> UserError:
    return UserError(f"--peft_method {method} {reason}", "lora fits most networks")


def _settings(method: str, rank: int) -> PeftConfig:
    """PEFT's config of a method; raises UserError if it does not take the rank.

    LoRA's scaling is 2 x rank, as in Hu et al. 2021 (arXiv 2106.09685) and PEFT's examples.
    """
    values = {"r": rank, "oft_block_size": 0, "feedforward_modules": []}
    values |= dict.fromkeys(("lora_alpha", "alpha"), 2 * rank)
    known = SETTINGS[method].__dataclass_fields__.keys() & values.keys()
    try:
        return SETTINGS[method](**{name: values[name] for name in known})
    except (ValueError, TypeError) as error:
        raise UserError(
            f"--peft_method {method} does not take --lora_rank {rank}: {one_line(error)}",
            "8 and 16 fit most methods",
        ) from error


def _fits(method: str, rank: int, kind: type[nn.Module]) -> bool:
    """Whether a method takes layers of a kind and merges them correctly.

    It is tried on a single layer, since a failure inside the model would leave it half wrapped.
    PEFT's OFT merges convolutions wrongly.
    """
    settings = _settings(method, rank)
    settings.target_modules = ["0"]
    make_layer, inputs = TRIAL_LAYERS[kind]
    generator = torch.Generator().manual_seed(0)
    try:
        wrapped = peft.get_peft_model(nn.Sequential(make_layer()), settings)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
            expected = wrapped.eval()(inputs)
            return torch.allclose(wrapped.merge_and_unload()(inputs), expected, atol=1e-3)
    except (ValueError, TypeError, NotImplementedError, KeyError):
        return False


# --- wrapping and merging ---


def wrap_with_adapter(
    model: Any, head: Sequence[str], method: str, rank: int, fixed: Collection[str] = ()
) -> PeftModel:
    """The model with an adapter at every linear and convolutional layer below the head.

    `head` names the parameters that are trained completely: PEFT trains and saves only what its
    modules_to_save name. `rank` is for methods that have one. Parameters called `fixed` stay a part
    of the plain model. Raises UserError for an unknown method, and for one that fits no layer.
    """
    require_method(method, rank)
    saved = sorted(owners(head))
    left_out = owners(fixed)
    layers = _adaptable_layers(model, saved, left_out)
    settings = _settings(method, rank)
    settings.modules_to_save = saved
    if method == "lora":
        custom = map(type, filter(_is_custom_conv, layers.values()))
        settings._register_custom_module(dict.fromkeys(custom, _WeightLora))
        if not layers:  # I-BERT has its own class of linear layers
            settings.target_parameters = _matrices(model, [*saved, *left_out])
    else:
        layers = _fitting_layers(layers, method, rank, type(model).__name__)
    settings.target_modules = list(layers)
    try:
        wrapped = peft.get_peft_model(model, settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = f"does not fit {type(model).__name__}: {one_line(error)}"
        raise _misfit(method, reason) from error
    plain = wrapped.get_base_model()
    for path in left_out:
        # PEFT finds modules_to_save by the end of their path: it takes pre_classifier for
        # classifier.
        module = plain.get_submodule(path)
        if isinstance(module, ModulesToSaveWrapper):
            plain.set_submodule(path, module.original_module)
    _require_adapted(wrapped, method, type(model).__name__)
    _copy_layer_attributes(wrapped)
    return wrapped


def merge(wrapped: PeftModel) -> Any:
    """The plain model again, with adapters added into its weights."""
    return wrapped.merge_and_unload()


def adapter_rates(wrapped: PeftModel, rates: Mapping[str, float]) -> dict[str, float]:
    """Name of each trainable parameter of a wrapped model -> its learning rate.

    `rates` are the learning rates of the plain model's parameters. What is added to a layer has the
    learning rate of the layer.
    """
    rate_of_module = {owner(name): rate for name, rate in rates.items()}
    result = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            # The innermost module around the parameter that exists in the plain model, too.
            result[name] = innermost(name.removeprefix("base_model.model."), rate_of_module)
    return result


def _fitting_layers(
    layers: Mapping[str, nn.Module], method: str, rank: int, network: str
) -> dict[str, nn.Module]:
    kinds = list(filter(partial(_fits, method, rank), TRIAL_LAYERS))
    fitting = {path: layer for path, layer in layers.items() if type(layer) in kinds}
    if not fitting:
        raise _misfit(method, f"fits no layer of {network}")
    names = ", ".join(kind.__name__ for kind in kinds)
    log.info("%s adapts %d layers (%s)", method, len(fitting), names)
    return fitting


def _require_adapted(wrapped: PeftModel, method: str, network: str) -> None:
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and ".modules_to_save." not in name:
            return
    raise _misfit(method, f"adapts nothing of {network}")


def _copy_layer_attributes(wrapped: PeftModel) -> None:
    """Give every wrapper its layer's plain attributes: MobileNet reads the stride of its layers."""
    for module in wrapped.modules():
        if isinstance(module, BaseTunerLayer):
            for name, value in vars(module.get_base_layer()).items():
                if not name.startswith("_") and not hasattr(module, name):
                    setattr(module, name, value)


class _WeightLora(LoraConv2d):
    """LoRA of a convolution that changes its weight before it uses it: added to the weight."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The convolution's own forward, with the adapted weight in place of its own."""
        layer = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return layer(x)
        added = sum(self.get_delta_weight(adapter) for adapter in self.active_adapters)
        return functional_call(layer, {"weight": layer.weight + added}, (x,))


# --- layers that take an adapter ---


def _adaptable_layers(
    model: nn.Module, saved: Sequence[str], left_out: Collection[str]
) -> dict[str, nn.Module]:
    """Path -> layer that takes an adapter and has its weight for itself alone.

    `saved` are the paths in modules_to_save. A layer whose path ends with one of them is left out:
    PEFT would train it completely with them (pre_classifier ends with classifier). So is one that
    shares a parameter: merging its adapter would change the other layer.
    """
    uses = Counter(map(id, dict(model.named_parameters(remove_duplicate=False)).values()))
    layers = {}
    for path, module in model.named_modules():
        if path in left_out or path.endswith(tuple(saved)) or path.startswith(below(saved)):
            continue
        if _is_adaptable(module) and uses[id(module.weight)] < 2:
            layers[path] = module
    return layers


def _matrices(model: nn.Module, left_out: Sequence[str]) -> list[str]:
    """The names of the matrices outside some modules that are no embeddings."""
    outside = below(left_out)
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name and not name.startswith(outside)
    ]


def _is_adaptable(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, Conv1D) or (isinstance(module, nn.Linear) and _is_linear(module))


def _is_linear(module: nn.Linear) -> bool:
    """Whether a layer is what its class is: a router of experts returns more than a tensor."""
    if type(module) is nn.Linear:
        return True
    weight = module.weight
    inputs = torch.ones(1, module.in_features, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        outputs = module(inputs)
    expected = F.linear(inputs, weight, module.bias)
    return isinstance(outputs, torch.Tensor) and torch.equal(outputs, expected)


def _is_custom_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward


# --- adapters on their own ---


@dataclass(frozen=True)
class Adapter:
    """What was trained beside a base model, head included: PEFT's settings, and tensors by name."""

    settings: PeftConfig
    weights: dict[str, torch.Tensor]


def read_adapter(wrapped: PeftModel) -> Adapter:
    """A copy of the adapter and head of a wrapped model, in main memory."""
    state = peft.get_peft_model_state_dict(wrapped)
    weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    return Adapter(wrapped.peft_config["default"], weights)


def save_adapter(
    adapter: Adapter,
    model: nn.Module,
    head: Collection[str],
    base_model: tuple[str, str | None],
    folder: Path,
) -> None:
    """Write an adapter as PEFT does: adapter_config.json and adapter_model.safetensors.

    `head` names the head's parameters, whose values are those that `model` has now. `base_model` is
    a Hub id and its revision, or a folder and None. To load the adapter:
    AutoModelFor*.from_pretrained(base model, revision=..., id2label=...,
    ignore_mismatched_sizes=True), then PeftModel.from_pretrained(model, folder), which brings the
    head. The model's own load_adapter leaves the head as it was drawn in transformers 5.17.
    """
    settings = copy.copy(adapter.settings)
    settings.base_model_name_or_path, settings.revision = base_model
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    weights = dict(adapter.weights)
    saved = tuple(settings.modules_to_save or ())
    for name, tensor in model.named_parameters():
        # PEFT looks for all modules whose path ends so: `pre_classifier`, too, for `classifier`.
        around = accumulate(owner(name).split("."), "{}.{}".format)
        if name in head or any(path.endswith(saved) for path in around):
            weights[f"base_model.model.{name}"] = tensor.detach().cpu().contiguous()
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
