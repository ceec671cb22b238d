"""Texts of a batch that share rows inside the layers, so that no layer computes padding (--pack).

Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination" (arXiv 2107.02027). Here
embeddings and head see the padded batch: its hidden states are packed before the first layer and
unpacked behind the last one. What else a layer takes (masks, positions) is packed by its shape.
Nothing is known of the architecture: texts are computed both ways first, and a model whose logits
differ, or whose layers fail, is refused with UnpackableError.
"""

import heapq
import itertools
import operator
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_transfer.frozen.split import SUFFIX_ERRORS
from hf_transfer.models.head import read_logits
from hf_transfer.models.layers import layer_blocks

MAX_WASTE = 1.02  # places of the packed rows per token
MIN_LENGTH = 0.75  # of a text, relative to the longest that attention computes it with
MAX_DIFFERENCE = 1e-4  # of the logits of a text, in float32, relative to their norm


class UnpackableError(Exception):
    """A model whose layers do not run on packed texts; the message says why."""


def share_rows(lengths: list[int], longest: int, most_rows: int) -> tuple[list[list[int]], int]:
    """Which texts each row holds, and the width of the rows, longer than the `longest` text.

    As many rows as leave at most MAX_WASTE: the fewer, the more pairs of texts attention computes
    in vain. The next longest text goes to the row with the fewest tokens (Graham 1969).
    """
    tokens = sum(lengths)
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for count in range(min(most_rows, int(MAX_WASTE * tokens / longest)), 1, -1):
        rows: list[tuple[int, int, list[int]]] = [(0, row, []) for row in range(count)]
        for text in by_length:
            filled, row, texts = rows[0]
            heapq.heapreplace(rows, (filled + lengths[text], row, [*texts, text]))
        # Wider than the padded batch: the shape of a tensor tells whether it is packed.
        width = max(longest + 1, max(rows)[0])
        if count * width <= MAX_WASTE * tokens:
            return [texts for _, _, texts in rows], width
    return [by_length], max(longest + 1, tokens)


class Layout:
    """Where the tokens of a padded batch, with `mask` (texts, length), stand in packed rows.

    Free places are copies of the first token, and attend to each other alone.
    """

    def __init__(self, mask: torch.Tensor, most_rows: int) -> None:
        self.padded = mask.shape
        lengths = mask.sum(1).tolist()
        rows, width = share_rows(lengths, mask.shape[1], most_rows)
        self.packed = torch.Size((len(rows), width))
        starts = [0] * len(lengths)
        for number, texts in enumerate(rows):
            ends = itertools.accumulate((lengths[text] for text in texts), initial=number * width)
            for text, start in zip(texts, ends, strict=False):
                starts[text] = start
        self.places = mask.flatten().nonzero().squeeze(1)
        text = self.places // mask.shape[1]
        before = torch.tensor([0, *lengths[:-1]], device=mask.device).cumsum(0)
        first = torch.tensor(starts, device=mask.device)
        self.slots = (first - before)[text] + torch.arange(len(text), device=mask.device)
        self.source = self.places[:1].repeat(self.packed.numel())
        self.source[self.slots] = self.places
        owner = torch.full_like(self.source, -1)
        owner[self.slots] = text
        owner = owner.view(self.packed)
        self.together = owner[:, :, None] == owner[:, None]  # pairs of tokens of one text
        self.groups = [
            Group(first[texts], torch.tensor([lengths[text] for text in texts], device=mask.device))
            for texts in similar_lengths(lengths)
        ]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a layer takes, packed where its shape is that of tokens or of pairs of them."""
        shape = tensor.shape
        if tensor.ndim not in (2, 3, 4) or shape[0] not in (1, self.padded[0]):
            return tensor
        has_pairs = tensor.ndim == 4 or (tensor.ndim == 3 and not tensor.is_floating_point())
        if has_pairs and shape[-1] == self.padded[1] and shape[-2] in (1, self.padded[1]):
            pairs = tensor if tensor.ndim == 4 else tensor[:, None]
            pairs = pairs.expand(self.padded[0], -1, self.padded[1], -1)
            packed = gather_pairs(pairs, self.source.view(self.packed), self.together)
            return packed if tensor.ndim == 4 else packed.squeeze(1)
        if tensor.ndim < 4 and shape[1] == self.padded[1]:
            tokens = tensor.expand(*self.padded, *shape[2:]).flatten(0, 1)
            return tokens.index_select(0, self.source).unflatten(0, self.packed)
        return tensor

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hidden states (texts, length, width) of packed ones, zeros at padding; others as is."""
        if tensor.ndim != 3 or tensor.shape[:2] != self.packed:
            return tensor
        tokens = tensor.flatten(0, 1).index_select(0, self.slots)
        padded = tensor.new_zeros(self.padded.numel(), tensor.shape[2])
        return padded.index_copy(0, self.places, tokens).unflatten(0, self.padded)

    def group_masks(self, mask: torch.Tensor) -> list[torch.Tensor]:
        """A packed mask (rows, heads, width, width) as one of each group."""
        return [gather_pairs(mask, group.slots, group.real[:, None]) for group in self.groups]


class Group:
    """Texts of similar lengths, which attention computes together.

    `slots` (texts, longest) are the places of their tokens in the packed rows, where `real`.
    """

    def __init__(self, starts: torch.Tensor, lengths: torch.Tensor) -> None:
        column = torch.arange(int(lengths.max()), device=lengths.device)
        self.real = column < lengths[:, None]
        self.slots = starts[:, None] + column * self.real  # elsewhere the first token again

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """(texts, heads, longest, width) of (rows, heads, places, width)."""
        tokens = tensor.transpose(1, 2).flatten(0, 1).index_select(0, self.slots.flatten())
        return tokens.unflatten(0, self.slots.shape).transpose(1, 2)


def similar_lengths(lengths: list[int]) -> Iterator[list[int]]:
    """The numbers of texts in groups, none of which is shorter than MIN_LENGTH of the longest."""
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    group = by_length[:1]
    for text in by_length[1:]:
        if lengths[text] < MIN_LENGTH * lengths[group[0]]:
            yield group
            group = []
        group.append(text)
    yield group


def gather_pairs(
    tensor: torch.Tensor, places: torch.Tensor, together: torch.Tensor
) -> torch.Tensor:
    """(rows, heads, width, width) from (texts, heads, length, length), of `places` (rows, width).

    Pairs that are not `together` (rows, 1 or width, width) have 0, False, or the lowest number.
    """
    text = places // tensor.shape[-1]
    column = places % tensor.shape[-1]
    by_head_last = tensor.movedim(1, -1)
    pairs = by_head_last[text[:, :, None], column[:, :, None], column[:, None]].movedim(-1, 1)
    apart = torch.finfo(tensor.dtype).min if tensor.is_floating_point() else 0
    return pairs.masked_fill(~together[:, None], apart)


@dataclass
class Packing:
    """Packs what the layers of a model take, within `running`; `root` is the module to call.

    `root` is the model itself, or a wrapper around it. `needed` counts the tokens of the batches,
    `computed` the places in the rows of the layers.
    """

    root: Any
    blocks: list[nn.Module]
    needed: int = 0
    computed: int = 0
    unpacked: bool = False  # whether hidden states came out of the last layer, and were packed
    _layout: Layout | None = None
    # Masks and positions are packed once for all layers: id -> the tensor, and packed.
    _packed: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _masks: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which batches are packed."""
        with ExitStack() as hooks:
            begin = self.root.register_forward_pre_hook(self._begin, with_kwargs=True)
            hooks.callback(begin.remove)
            for block in self.blocks:
                hooks.callback(
                    block.register_forward_pre_hook(self._enter, with_kwargs=True).remove
                )
            hooks.callback(self.blocks[-1].register_forward_hook(self._leave).remove)
            attend = partial(self._attend, ALL_ATTENTION_FUNCTIONS["sdpa"])
            ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
            hooks.callback(ALL_ATTENTION_FUNCTIONS.pop, "sdpa")
            yield
        self._packed.clear()

    def _begin(self, root: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._packed.clear()
        self._masks.clear()
        self._layout = None
        if mask is not None:
            tokens = int(mask.sum())
            is_padded = mask.numel() > MAX_WASTE * tokens
            self._layout = Layout(mask, len(mask)) if is_padded else None
            self.needed += tokens
            rows, width = self._layout.packed if self._layout else mask.shape
            self.computed += rows * width

    def _enter(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map_only(torch.Tensor, self._pack, (args, kwargs)) if self._layout else None

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self._packed:
            return self._packed[id(tensor)][1]
        packed = self._layout.pack(tensor)
        if packed is not tensor:
            self._packed[id(tensor)] = (tensor, packed)
        return packed

    def _leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        if self._layout is None:
            return None
        unpacked = tree_map_only(torch.Tensor, self._layout.unpack, output)
        self.unpacked = any(map(operator.is_not, tree_leaves(output), tree_leaves(unpacked)))
        return unpacked

    def _attend(self, sdpa: Any, module: nn.Module, *args: Any, **options: Any) -> Any:
        """transformers' attention, in groups of texts where it is packed."""
        *tensors, mask = args
        layout = self._layout
        is_packed = layout and mask is not None and mask.shape[::2] == layout.packed
        if not is_packed or options.get("position_bias") is not None:
            return sdpa(module, *args, **options)
        if id(mask) not in self._masks:
            self._masks[id(mask)] = (mask, layout.group_masks(mask))
        outputs = []
        for group, own_mask in zip(layout.groups, self._masks[id(mask)][1], strict=True):
            output, _ = sdpa(module, *map(group.take, tensors), own_mask, **options)
            outputs.append(output[group.real])
        slots = torch.cat([group.slots[group.real] for group in layout.groups])
        packed = outputs[0].new_zeros(layout.packed.numel(), *outputs[0].shape[1:])
        return packed.index_copy(0, slots, torch.cat(outputs)).unflatten(0, layout.packed), None


def make_packing(model: Any, root: Any = None) -> Packing:
    """The packing of a model, or of an encoder's layers where it has a decoder, too."""
    towers = layer_blocks(model)
    layers = towers[0][1] if towers else []
    blocks = [model.get_submodule(path) for path in itertools.chain.from_iterable(layers)]
    if not blocks:
        raise UnpackableError("it has no list of layers")
    dropping = {
        name: value
        for name, value in model.config.to_dict().items()
        if name.endswith("layerdrop") and value
    }
    if dropping:
        raise UnpackableError(f"it leaves out layers at random ({', '.join(dropping)})")
    return Packing(root or model, blocks)


def require_same(packing: Packing, inputs: Mapping[str, torch.Tensor]) -> None:
    """Raise UnpackableError unless texts of several lengths have the same logits in both ways."""
    root = packing.root
    was_training = root.training
    root.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)  # for both, since some models (Reformer, Yoso) hash at random
            expected = read_logits(root(**inputs)).float()
            torch.manual_seed(0)
            with packing.running():
                logits = read_logits(root(**inputs)).float()
    except SUFFIX_ERRORS as error:
        raise UnpackableError(f"its layers do not run on packed texts: {error}") from error
    finally:
        root.train(was_training)
    if not packing.unpacked:
        raise UnpackableError("its layers do not hand on hidden states of (texts, tokens, width)")
    if logits.shape != expected.shape:
        raise UnpackableError("packed texts change the shape of its logits")
    norm = expected.flatten(1).norm(dim=1).clamp(min=1e-12)
    difference = float(((logits - expected).flatten(1).norm(dim=1) / norm).max())
    if not difference <= MAX_DIFFERENCE:
        raise UnpackableError(f"packed texts change its logits by {difference:.1e}")
