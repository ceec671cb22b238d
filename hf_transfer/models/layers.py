"""The anatomy of a network: every parameter -> embeddings, layer k of n, or head."""

import ast
import inspect
import re
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeGuard

from torch import nn
from transformers import PreTrainedModel

from hf_transfer.models.head import find_output_layer

# What turns raw input into vectors is the embedding, whatever is inside: its list of convolutions is no list of layers.
FRONT = re.compile("embed|feature_extractor")

# What transformers calls the raw input of a kind; inner modules have names of their own for what they take.
RAW_INPUTS = {"input_ids", "pixel_values", "pixel_values_videos", "input_values", "input_features"}

LOOKS = {"len", "isinstance", "hasattr", "getattr"}


@dataclass(frozen=True)
class LayerMap:
    """The stages of a network in the order in which they run: embeddings, layer 1..n, head."""

    stages: tuple[str, ...]
    depths: dict[str, int]  # name of a parameter -> position of its stage

    def depth_of(self, parameter: str) -> int:
        """The position of a parameter's stage: 0 for the embeddings, len(stages) - 1 for the head."""
        return self.depths[parameter]


def layer_map(
    model: Any, head: Collection[str] | None = None, fixed: Collection[str] = ()
) -> LayerMap:
    """The stages of a model, read from its module tree and its forward methods; there is no table of architectures.

    A layer is an element of an outermost list of blocks, with what runs between it and the next one; what runs before
    the first is the embeddings. Lists side by side with as many elements (patch embeddings, blocks and norms of a
    pyramid) are one. `head` names the parameters of the head (Checkpoint.head); without it they are all those that
    find_head gives. `fixed` names parameters that stand with the head, a layer of them is none of the n
    (Checkpoint.fixed). A parameter that several layers share belongs to the first of them.
    """
    depths = _depths_of_body(model)
    ends = {*(find_head(model) if head is None else head), *fixed}
    layers = max(depth for name, depth in depths.items() if not (fixed and name in ends))
    depths |= dict.fromkeys(ends, layers + 1)
    return LayerMap(("embeddings", *(f"layer {n}" for n in range(1, layers + 1)), "head"), depths)


def layer_blocks(model: Any) -> list[tuple[int, list[tuple[str, ...]]]]:
    """The towers of a model in order: the depth of the first layer of each, and the modules of each of its layers."""
    towers: dict[str, tuple[int, list[tuple[str, ...]]]] = {}
    depth = 0
    for part in _parts(model, model, ""):
        depth += part.begins_layer
        if part.begins_layer:
            towers.setdefault(part.tower, (depth, []))[1].append((part.path,))
        elif part.tower:
            towers[part.tower][1][-1] += (part.path,)
    return list(towers.values())


def find_head(model: Any) -> set[str]:
    """The names of the parameters outside the base model; of a model without one, of what runs behind its layers.

    Perceiver has its output layer inside the base model: there it is the output layer alone.
    """
    depths = _depths_of_body(model)
    prefix = f"{model.base_model_prefix}."
    if any(name.startswith(prefix) for name in depths):
        outside = {name for name in depths if not name.startswith(prefix)}
    else:
        layers = max(depths.values())
        in_body = {name.partition(".")[0] for name, depth in depths.items() if depth < layers}
        outside = {name for name in depths if name.partition(".")[0] not in in_body}
    return outside or find_output_layer(model)


def _depths_of_body(model: Any) -> dict[str, int]:
    """Name of a parameter -> 0 or the number of the layer that it is in or runs behind."""
    depth, depth_of_part = 0, {}
    for part in _parts(model, model, ""):
        depth += part.begins_layer
        depth_of_part[part.path] = depth
    return {
        name: next(depth_of_part[path] for path in _paths(name) if path in depth_of_part)
        for name, _ in model.named_parameters()
    }


class _Part(NamedTuple):
    """A module or parameter by its path; of a block also the path of its list, and whether it is the block's first."""

    path: str
    tower: str = ""
    begins_layer: bool = False


def _parts(model: Any, module: nn.Module, path: str) -> Iterator[_Part]:
    """Blocks, and what is outside of blocks, in the order in which they run."""
    lists = {name: child for name, child in module.named_children() if _is_list(child)}
    lengths = {len(child) for name, child in lists.items() if _is_blocks(name, child)}
    done: set[int] = set()
    for name in _in_order(module):
        child = module._modules.get(name)
        length = len(lists[name]) if name in lists else None
        if length in lengths:
            together = [other for other, child in lists.items() if len(child) == length]
            if length not in done:
                tower = f"{path}{together[0]}"
                yield from (
                    _Part(f"{path}{o}.{n}", tower, o == together[0])
                    for n in range(length)
                    for o in together
                )
            done.add(length)
        elif child is None or name in lists or FRONT.search(name) or _is_foreign(model, child):
            yield _Part(f"{path}{name}")
        else:
            yield from _parts(model, child, f"{path}{name}.")


def _is_list(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    return isinstance(module, nn.ModuleList) and any(True for _ in module.parameters())


def _is_blocks(name: str, modules: nn.ModuleList) -> bool:
    return not FRONT.search(name) and any(True for module in modules for _ in module.children())


def _is_foreign(model: Any, part: nn.Module) -> bool:
    """Whether a part is a tower for another kind of input than the model's: what it sees goes into the embeddings."""
    if not isinstance(part, PreTrainedModel):
        return False
    others = [getattr(model.config, f"{kind}_config", None) for kind in ("vision", "audio")]
    if model.main_input_name == "input_ids" and any(part.config is other for other in others):
        return True
    takes = {part.main_input_name, model.main_input_name}
    return len(takes) == 2 and takes <= RAW_INPUTS


def _paths(name: str) -> Iterator[str]:
    """The path of a parameter and of the modules that it lies in, the innermost first."""
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(len(parts), 0, -1))


def _in_order(module: nn.Module) -> list[str]:
    """A module's children and own parameters in the order in which its forward method uses them.

    Modules are often registered in another order than they run: a classifier before its encoder, a norm of the
    embeddings after all layers. What forward does not mention stays behind what is registered before it.
    """
    kind: Any = type(module)
    uses = _uses(kind)
    called = [use.name for use in uses if use.is_call]
    order = {
        use.name: rank
        for rank, use in reversed(list(enumerate(uses)))
        if use.is_call or use.name not in called
    }
    rank, ranks = -1, {}
    for name in (*module._parameters, *module._modules):
        rank = ranks[name] = order.get(name, rank)
    return sorted(ranks, key=ranks.__getitem__)


class _Use(NamedTuple):
    """A place where a method reads an attribute of `self`; a module that is called elsewhere is only looked at here."""

    name: str
    is_call: bool


@cache
def _uses(
    kind: Any, method: str = "forward", callers: frozenset[str] = frozenset()
) -> tuple[_Use, ...]:
    """The uses of attributes of `self` in the order of evaluation, methods that are called followed.

    Nothing if there is no source to read: torch's own containers run in the order in which they are registered.
    """
    function = inspect.unwrap(inspect.getattr_static(kind, method))
    if kind.__module__.startswith("torch.nn"):
        return ()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ()
    reader = _SelfReader()
    reader.visit(tree)
    callers = callers | {method}
    uses: list[_Use] = []
    for use in reader.uses:
        is_method = inspect.isfunction(inspect.getattr_static(kind, use.name, None))
        uses += _uses(kind, use.name, callers) if is_method and use.name not in callers else [use]
    return tuple(uses)


class _SelfReader(ast.NodeVisitor):
    """Collects the uses of attributes of `self`: arguments before the call, values before what they are assigned to.

    `is None` and `len(...)` only look at what they name.
    """

    def __init__(self) -> None:
        self.uses: list[_Use] = []

    def visit_Compare(self, node: ast.Compare) -> None:
        if not any(isinstance(operator, (ast.Is, ast.IsNot)) for operator in node.ops):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in LOOKS:
            return
        for part in (*node.args, *node.keywords):
            self.visit(part)
        if _is_of_self(node.func):
            self.uses.append(_Use(node.func.attr, is_call=True))
        else:
            self.visit(node.func)

    def visit_Assign(self, node: ast.Assign) -> None:
        for part in (node.value, *node.targets):
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if _is_of_self(node):
            self.uses.append(_Use(node.attr, is_call=False))
        self.generic_visit(node)


def _is_of_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )
