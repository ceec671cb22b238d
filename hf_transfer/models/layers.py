"""The stages of a network: every parameter belongs to the embeddings, layer k of n, or the head."""

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from torch import nn
from transformers import PreTrainedModel

from hf_transfer.models.execution_order import execution_order
from hf_transfer.models.head import find_output_layer, innermost

# Modules that turn raw input into vectors are embeddings, whatever is inside: the convolutions of
# a feature extractor are a list of modules, and no list of layers.
EMBEDDING_MODULES = re.compile("embed|feature_extractor")

# transformers' names of raw inputs. Inner modules have other names for what they take.
RAW_INPUTS = {"input_ids", "pixel_values", "pixel_values_videos", "input_values", "input_features"}


@dataclass(frozen=True)
class LayerMap:
    """The stages of a network in the order in which they run: embeddings, layer 1..n, head."""

    stages: tuple[str, ...]
    depths: dict[str, int]  # name of a parameter -> position of its stage

    @property
    def head(self) -> int:
        """Position of the head's stage, which is the last."""
        return len(self.stages) - 1

    @property
    def num_layers(self) -> int:
        """Number of layers between the embeddings and the head; also the position of the last."""
        return len(self.stages) - 2

    def depth_of(self, parameter: str) -> int:
        """Position of a parameter's stage: 0 for the embeddings, `head` for the head."""
        return self.depths[parameter]


def layer_map(
    model: Any, head: Collection[str] | None = None, fixed: Collection[str] = ()
) -> LayerMap:
    """The stages of a model, read from its module tree and its forward methods.

    There is no table of architectures. A layer is an element of an outermost list of blocks, with
    what runs between it and the next one; what runs before the first layer is the embeddings. Lists
    of the same length side by side are one list (patch embeddings, blocks and norms of a pyramid).
    A parameter that several layers share belongs to the first of them.

    `head` names the parameters of the head (Checkpoint.head), by default those of find_head.
    `fixed` names parameters that count as head (Checkpoint.fixed): a layer of them is not counted.
    """
    depths = _body_depths(model)
    top = {*(find_head(model) if head is None else head), *fixed}
    body = depths.keys() - top if fixed else depths
    layers = max(map(depths.__getitem__, body))
    depths |= dict.fromkeys(top, layers + 1)
    return LayerMap(("embeddings", *map("layer {}".format, range(1, layers + 1)), "head"), depths)


def layer_blocks(model: Any) -> list[tuple[int, list[tuple[str, ...]]]]:
    """The towers of a model in order, as an encoder and a decoder.

    Of each tower the depth of its first layer, and the paths of the modules of each of its layers.
    """
    towers: dict[str, tuple[int, list[tuple[str, ...]]]] = {}
    depth = 0
    for part in _parts(model, model, ""):
        depth += part.begins_layer
        if part.begins_layer:
            towers.setdefault(part.tower, (depth, []))[1].append((part.path,))
        elif part.tower:
            towers[part.tower][1][-1] += (part.path,)
    return list(towers.values())


def embedding_modules(model: Any) -> list[str]:
    """The paths of the modules that turn raw input into vectors, before the first layer."""
    before = itertools.takewhile(lambda part: not part.begins_layer, _parts(model, model, ""))
    modules = dict(model.named_modules())
    paths = [part.path for part in before if part.path in modules]
    return [path for path in paths if EMBEDDING_MODULES.search(path.rpartition(".")[2])]


def find_head(model: Any) -> set[str]:
    """The names of the parameters outside the base model.

    A model without a base model has for its head what runs behind its layers. Perceiver has its
    output layer inside the base model: its head is the output layer alone.
    """
    depths = _body_depths(model)
    prefix = f"{model.base_model_prefix}."
    outside = {name for name in depths if not name.startswith(prefix)}
    if len(outside) == len(depths):
        layers = max(depths.values())
        in_body = {name.partition(".")[0] for name, depth in depths.items() if depth < layers}
        outside = {name for name in depths if name.partition(".")[0] not in in_body}
    return outside or find_output_layer(model)


def _body_depths(model: Any) -> dict[str, int]:
    """Name of a parameter -> the number of the layer that it is in or runs behind, 0 before all."""
    depth = 0
    depth_of_part: dict[str, int] = {}
    for part in _parts(model, model, ""):
        depth += part.begins_layer
        depth_of_part[part.path] = depth
    return {name: innermost(name, depth_of_part) for name, _ in model.named_parameters()}


class _Part(NamedTuple):
    """A module or parameter that belongs completely to one stage."""

    path: str
    tower: str = ""  # path of the list that a block is in
    begins_layer: bool = False  # the first block of a layer


def _parts(model: Any, module: nn.Module, path: str) -> Iterator[_Part]:
    """Blocks, and what is outside of blocks, in the order in which they run."""
    lists = {name: child for name, child in module.named_children() if _is_list(child)}
    block_counts = {len(child) for name, child in lists.items() if _is_block_list(name, child)}
    done: set[int] = set()
    for name in execution_order(module):
        child = module._modules.get(name)
        count = len(lists[name]) if name in lists else None
        if count in block_counts:
            # Lists of one length run layer by layer together, from where the first of them is used.
            if count not in done:
                together = [other for other, blocks in lists.items() if len(blocks) == count]
                for number, other in itertools.product(range(count), together):
                    block = f"{path}{other}.{number}"
                    yield _Part(block, f"{path}{together[0]}", begins_layer=other == together[0])
            done.add(count)
        elif (
            child is None
            or name in lists
            or EMBEDDING_MODULES.search(name)
            or _is_other_tower(model, child)
        ):
            yield _Part(f"{path}{name}")
        else:
            yield from _parts(model, child, f"{path}{name}.")


def _is_list(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    return isinstance(module, nn.ModuleList) and next(module.parameters(), None) is not None


def _is_block_list(name: str, modules: nn.ModuleList) -> bool:
    """Whether a list is one of layers: some element has children of its own, as a block has."""
    has_blocks = any(True for module in modules for _ in module.children())
    return has_blocks and not EMBEDDING_MODULES.search(name)


def _is_other_tower(model: Any, module: nn.Module) -> bool:
    """Whether a module is a tower for another kind of input: its outputs go into the embeddings."""
    if not isinstance(module, PreTrainedModel):
        return False
    if model.main_input_name == "input_ids":
        for kind in ("vision", "audio"):
            if module.config is getattr(model.config, f"{kind}_config", None):
                return True
    inputs = {module.main_input_name, model.main_input_name}
    return len(inputs) == 2 and inputs <= RAW_INPUTS
