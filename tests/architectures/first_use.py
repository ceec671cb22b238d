"""The order in which a network uses its parameters, as seen while it runs."""

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

LOOKS = {
    "size",
    "dim",
    "numel",
    "is_floating_point",
}  # functions that look at a parameter without using its values
TRANSPOSED = {"T", "mT", "H", "data"}  # attributes that stand for the values


class FirstUse(TorchFunctionMode):
    """Collects in `order` the names of a model's parameters, each when a torch function first gets it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.order: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note the parameters among the arguments, then call."""
        name = getattr(function, "__name__", "")
        attribute = getattr(getattr(function, "__self__", None), "__name__", "")
        if name not in LOOKS and (name != "__get__" or attribute in TRANSPOSED):
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, nn.Parameter) and id(value) in self.names:
                    self.order.append(self.names.pop(id(value)))
        return function(*args, **(kwargs or {}))
