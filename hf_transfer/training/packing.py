"""Texts of a batch that share rows inside the layers, so that padding costs nothing (--pack).

Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination" (arXiv 2107.02027). Here
embeddings and head see the padded batch: its hidden states are packed before the first layer and
unpacked behind the last one. What else a layer takes (masks, positions) is packed by its shape.
Nothing is known of the architecture: some texts are computed both ways first, and where the logits
differ, or the layers fail, batches stay padded.
"""

import itertools
import logging
import operator
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_transfer.data.encode import Collate
from hf_transfer.errors import one_line
from hf_transfer.frozen.forward_pass import first_reason
from hf_transfer.frozen.split import SUFFIX_ERRORS
from hf_transfer.job import Job
from hf_transfer.models.head import read_logits
from hf_transfer.models.layers import layer_blocks
from hf_transfer.training.packed_rows import MAX_WASTE, Layout, share_rows

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 2048  # that are computed both ways
MAX_DIFFERENCE = 1e-4  # of the logits of a text, in float32, relative to their norm


class UnpackableError(Exception):
    """A model whose layers do not run on packed texts; the message says why."""


@dataclass
class Packing:
    """Packs what the layers of a model take, within `running`; `root` is the module to call.

    `root` is the model itself, or a wrapper around it. There are at most `most_rows` packed rows,
    and no batch is packed whose rows would be wider than `widest`. Of the places of all batches,
    `needed` counts those of tokens, `padded` those before packing, `computed` those behind it.
    """

    root: Any
    blocks: list[nn.Module]
    widest: float = float("inf")
    most_rows: float = float("inf")
    needed: int = 0
    padded: int = 0
    computed: int = 0
    unpacked: bool = False  # whether the last layer returned hidden states that were packed
    grouped: bool = False  # whether attention was computed in groups of texts
    layout: Layout | None = None  # of the batch, where it is packed
    # Masks and positions are packed once for all layers: id -> the tensor, and packed.
    _packed: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _masks: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which batches are packed."""
        with ExitStack() as hooks:
            handles = [self.root.register_forward_pre_hook(self._begin, with_kwargs=True)]
            for block in self.blocks:
                handles.append(block.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(self.blocks[-1].register_forward_hook(self._leave))
            for handle in handles:
                hooks.callback(handle.remove)
            sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
            ALL_ATTENTION_FUNCTIONS["sdpa"] = partial(self._attend, sdpa)
            hooks.callback(ALL_ATTENTION_FUNCTIONS.pop, "sdpa")
            yield
        self._forget()

    def _forget(self) -> None:
        self.layout = None
        self._packed.clear()
        self._masks.clear()

    def _begin(self, root: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._forget()
        mask = kwargs.get("attention_mask")
        if mask is None:
            return
        lengths = mask.sum(1).tolist()
        places = mask.numel()
        self.needed += sum(lengths)
        self.padded += places
        if places > MAX_WASTE * sum(lengths):
            most = int(min(self.most_rows, len(lengths)))
            rows, width = share_rows(lengths, mask.shape[1], most)
            if width <= self.widest:
                self.layout = Layout(mask, lengths, rows, width)
                places = self.layout.packed.numel()
        self.computed += places

    def _enter(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.layout is None:
            return None
        return tree_map_only(torch.Tensor, partial(self._pack, self.layout), (args, kwargs))

    def _pack(self, layout: Layout, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self._packed:
            return self._packed[id(tensor)][1]
        packed = layout.pack(tensor)
        if packed is not tensor:
            self._packed[id(tensor)] = (tensor, packed)
        return packed

    def _leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        if self.layout is None:
            return None
        padded = tree_map_only(torch.Tensor, self.layout.unpack, output)
        self.unpacked = any(map(operator.is_not, tree_leaves(output), tree_leaves(padded)))
        return padded

    def _attend(self, sdpa: Any, module: nn.Module, *args: Any, **options: Any) -> Any:
        """transformers' attention; of packed texts in groups, not between all in a row."""
        *tensors, mask = args
        layout = self.layout
        is_packed = layout and mask is not None and mask.shape[::2] == layout.packed
        if layout is None or not is_packed or options.get("position_bias") is not None:
            return sdpa(module, *args, **options)
        if id(mask) not in self._masks:
            self._masks[id(mask)] = (mask, layout.group_masks(mask))
        self.grouped = True
        outputs = []
        for group, own_mask in zip(layout.groups, self._masks[id(mask)][1], strict=True):
            output, _ = sdpa(module, *map(group.take, tensors), own_mask, **options)
            outputs.append(output[group.real])
        slots = torch.cat([group.slots[group.real] for group in layout.groups])
        packed = outputs[0].new_zeros(layout.packed.numel(), *outputs[0].shape[1:])
        return packed.index_copy(0, slots, torch.cat(outputs)).unflatten(0, layout.packed), None


def packed_layers(
    job: Job, root: Any, rows: Dataset, collate: Collate
) -> AbstractContextManager[None]:
    """The context in which a phase trains: with --pack, `root` computes no padding in its layers.

    `root` is the job's model or a wrapper around it. Where packing is not possible for batches of
    `rows`, the log says why, and they stay padded.
    """
    if not job.training.pack:
        return nullcontext()
    reason = None
    try:
        packing = prove_packing(job, root, rows, collate)
    except UnpackableError as error:
        reason = str(error)
    reason = first_reason(reason)
    if reason:
        log.warning("--pack: texts are padded: %s", reason)
        return nullcontext()
    return _counting(packing)


@contextmanager
def _counting(packing: Packing) -> Iterator[None]:
    with packing.running():
        yield
    log.info(
        "--pack: %.3f tokens were computed for each one of a text; with padding it had been %.2f",
        packing.computed / max(1, packing.needed),
        packing.padded / max(1, packing.needed),
    )


def prove_packing(job: Job, root: Any, rows: Dataset, collate: Collate) -> Packing:
    """The packing of a job's model, proved on rows of all lengths. Raises UnpackableError."""
    hindrances = {
        "the inputs are no texts": job.data.task.modality != "text",
        "batches are computed in parts of one length": job.encoder.padding == "none",
        "one process has several GPUs": job.training.n_gpu > 1,
    }
    for reason in filter(hindrances.get, hindrances):
        raise UnpackableError(reason)
    lengths = np.asarray(rows["length"][:])
    count = min(len(lengths), max(4, int(SAMPLE_TOKENS / lengths.mean())))
    order = np.argsort(lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, count).astype(int)]
    batch = collate(list(rows.select(chosen)))
    inputs = {name: tensor.to(job.training.device) for name, tensor in batch.items()}
    root.to(job.training.device)
    blocks = packable_blocks(job.model)
    del inputs["labels"]
    # As batches are packed, and all in one row: that wide the layers take them.
    trials = [Packing(root, blocks, most_rows=rows) for rows in (count, 1)]
    widest = max(require_same_logits(trial, inputs) for trial in trials)
    # Between all pairs in a row it costs more than padding: 0.45 x as fast for MPNet, 0.59 x for
    # an eager BERT (texts of 64 tokens in the mean, by length).
    if job.training.device.type == "cpu" and not all(trial.grouped for trial in trials):
        raise UnpackableError("on a CPU it is slower without transformers' own sdpa attention")
    return Packing(root, blocks, widest=widest)


def packable_blocks(model: Any) -> list[nn.Module]:
    """The layers of a model that are packed: of an encoder with a decoder the encoder's.

    Raises UnpackableError if it has none, or leaves out some at random.
    """
    towers = layer_blocks(model)
    paths = itertools.chain.from_iterable(towers[0][1]) if towers else ()
    blocks = [model.get_submodule(path) for path in paths]
    drop = [name for name, value in model.config.to_dict().items() if "layerdrop" in name and value]
    if drop:
        raise UnpackableError(f"layers are left out at random ({', '.join(drop)})")
    if not blocks:
        raise UnpackableError("it has no list of layers")
    return blocks


def require_same_logits(packing: Packing, inputs: Mapping[str, torch.Tensor]) -> int:
    """The width of the packed rows. Raises UnpackableError unless texts have the same logits."""
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
                width = packing.layout.packed[1] if packing.layout else 0
    except SUFFIX_ERRORS as error:
        raise UnpackableError(f"the layers fail on packed texts: {one_line(error)}") from error
    finally:
        root.train(was_training)
    if not width:
        raise UnpackableError("there is no padding")
    if not packing.unpacked or logits.shape != expected.shape:
        raise UnpackableError("the layers do not pass on states of (texts, tokens, width)")
    if expected.shape[:-1] == inputs["attention_mask"].shape:  # of tokens: padding has no labels
        real = inputs["attention_mask"][..., None]
        logits = logits * real
        expected = expected * real
    norm = expected.flatten(1).norm(dim=1).clamp(min=1e-12)
    difference = float(((logits - expected).flatten(1).norm(dim=1) / norm).max())
    if not difference <= MAX_DIFFERENCE:
        raise UnpackableError(f"packed texts change the logits by {difference:.1e}")
    return width
