"""A model split behind frozen blocks, in any architecture, by stand-ins for the blocks.

What connects the blocks of a model (masks, position biases, a loop that collects hidden states) is
Python code inside `forward`, which no module contains, so a model cannot be cut into modules that
run alone. Both parts run the model's own `forward` instead, with stand-ins for the frozen blocks:

- the prefix records the output of the last frozen block of each tower (encoder, decoder), then
  breaks off;
- in the suffix that block returns what was recorded, and the frozen blocks before it hand on their
  input without computing anything; so do the convolutions that turn a sound into vectors.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hf_transfer.models.head import in_place_of, read_logits
from hf_transfer.models.layers import embedding_modules, layer_blocks

Tensors = dict[str, torch.Tensor]

BLOCK_OUTPUT = "frozen_"  # how the names of these activations begin
MAX_POSITIONS = 4  # that are stored alone: those of class and distillation tokens


class UnsplittableError(Exception):
    """A model whose frozen layers cannot be run apart at this boundary; the message says why."""


@dataclass
class _OutputStructure:
    """What a block returned: tensors in nested tuples and dataclasses, flattened to `leaves`.

    Those at `tensors` are recorded; among the leaves they are zeros of the same shape.
    """

    spec: TreeSpec
    leaves: list[Any]
    tensors: list[int]
    keeps_shape: bool  # whether the first tensor has the shape of the block's first input


@dataclass
class BlockSplit:
    """Split behind `frozen_stages`: the activations are the outputs of the last frozen blocks.

    There is one such block in each tower, at the paths `last_blocks`; `earlier_blocks` are the
    frozen ones before them. After the first batch `inputs_read` names the inputs that the suffix
    takes, and `positions_read` how many positions of an activation are stored, where not all are.
    """

    model: Any
    frozen_stages: int
    keeps_all: bool = False  # also the positions that the suffix does not read
    last_blocks: list[str] = field(init=False, default_factory=list)
    earlier_blocks: list[str] = field(init=False, default_factory=list)
    inputs_read: set[str] = field(init=False, default_factory=set)
    positions_read: dict[str, int] = field(init=False, default_factory=dict)
    _structures: dict[str, _OutputStructure] = field(init=False, default_factory=dict)
    # Path -> shape of what a module of the embeddings returned, and its axis of positions.
    _embeddings: dict[str, tuple[torch.Size, int]] = field(init=False, default_factory=dict)
    _absent_inputs: dict[str, tuple[torch.Size, str | None]] = field(
        init=False, default_factory=dict
    )
    _activations: Tensors = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for first_stage, tower in layer_blocks(self.model):
            frozen = tower[: max(0, self.frozen_stages - first_stage)]
            blocks = _called_modules(self.model, itertools.chain.from_iterable(frozen))
            self.earlier_blocks += blocks[:-1]
            self.last_blocks += blocks[-1:]
        if not self.last_blocks:
            raise UnsplittableError(
                "only the embeddings are frozen, which cost less to compute than to read"
            )

    def prefix(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Outputs of the last frozen blocks, and the inputs (ids, masks) but images and audio."""
        outputs = self._run_to_last_blocks(inputs)
        # Images and audio are large, and only the embeddings read them, whose output is not used.
        main_input = self.model.main_input_name
        activations = dict(inputs)
        if main_input in inputs and inputs[main_input].is_floating_point():
            shape = activations.pop(main_input).shape[1:]
            masks = (name for name, tensor in activations.items() if tensor.shape[1:2] == shape[:1])
            self._absent_inputs = {main_input: (shape, next(masks, None))}
        self.inputs_read = set(activations)
        rows = len(next(iter(inputs.values())))
        for path in self.last_blocks:
            leaves, _ = tree_flatten(outputs[path])
            for leaf in self._structures[path].tensors:
                name = self._name(path, leaf)
                tensor = leaves[leaf].detach()
                if len(tensor) != rows:
                    if leaf == self._structures[path].tensors[0]:
                        raise UnsplittableError(
                            f"{path} returns a tensor of length {len(tensor)} for {rows} rows"
                        )
                    continue  # as WavLM's position bias: zeros serve, unless the check says no
                count = self.positions_read.get(name)
                activations[name] = tensor if count is None else tensor[:, :count]
        return activations

    @property
    def last_output(self) -> str:
        """The name of the activation of the last tower's block, after the first batch."""
        path = self.last_blocks[-1]
        return self._name(path, self._structures[path].tensors[0])

    def suffix(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits (rows, labels) of activations."""
        with self.replaying():
            return read_logits(self.model(**activations))

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Within the context the model takes what `prefix` returns in place of its inputs."""
        with ExitStack() as patches:
            hook = self.model.register_forward_pre_hook(self._replace_inputs, with_kwargs=True)
            patches.callback(hook.remove)
            for path in self.earlier_blocks:
                self._replace_block(path, partial(self._skip, path), patches)
            for path in self.last_blocks:
                self._replace_block(path, partial(self._replay, path), patches)
            for path in () if self.positions_read else self._embeddings:
                self._replace_block(path, partial(self._embed, path), patches)
            yield

    def trim(self, activations: Mapping[str, torch.Tensor]) -> Tensors:
        """The activations without positions that the suffix does not read; `prefix` drops them too.

        Many heads read the first position or two alone, so behind the last layer only these are
        needed; below a layer with attention, and before a mean, all are. The gradient of the logits
        with respect to an activation is zero at positions that are not read.
        """
        sequences = {}
        for path in () if self.keeps_all else self.last_blocks:
            structure = self._structures[path]
            name = self._name(path, structure.tensors[0])
            if structure.keeps_shape and activations[name].ndim == 3:
                sequences[name] = activations[name].detach().requires_grad_()
        if not sequences:
            return dict(activations)
        with torch.enable_grad():
            # Clones, since models may change in place what a block returns.
            logits = self.suffix({**activations, **{n: t.clone() for n, t in sequences.items()}})
            # Random weights: in a plain sum the labels may cancel, and what is read seem unread.
            total = (logits * torch.randn_like(logits)).sum()
            gradients = torch.autograd.grad(total, list(sequences.values()), allow_unused=True)
        trimmed = dict(activations)
        for name, gradient in zip(sequences, gradients, strict=True):
            count = _count_positions(gradient)
            # With none at all the gradient was cut off; with half of them little is saved.
            if 0 < count <= MAX_POSITIONS < activations[name].shape[1] / 2:
                self.positions_read[name] = count
                trimmed[name] = activations[name][:, :count]
        return trimmed

    def _run_to_last_blocks(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Path of each last frozen block -> its output; what runs behind them is not computed."""
        outputs: dict[str, Any] = {}
        shapes: dict[str, torch.Size] = {}
        with torch.no_grad(), ExitStack() as patches:
            for path in embedding_modules(self.model):
                hook = partial(_keep_shape, shapes, path)
                handle = self.model.get_submodule(path).register_forward_hook(hook)
                patches.callback(handle.remove)
            for path in (*self.earlier_blocks, *self.last_blocks):
                forward = self.model.get_submodule(path).forward
                self._replace_block(path, partial(self._record, path, forward, outputs), patches)
            with suppress(_AllRecordedError):
                self.model(**inputs)
        missing = set(self.last_blocks) - set(outputs)
        if missing:
            raise UnsplittableError(f"{', '.join(missing)} did not run")
        self._find_embeddings(shapes, tree_flatten(outputs[self.last_blocks[0]])[0][0])
        return outputs

    def _find_embeddings(self, shapes: Mapping[str, torch.Size], output: Any) -> None:
        """Find the embeddings with an axis as long as the positions of a block's output.

        Those of texts cost nothing; where an axis is not clear, the embeddings run on zeros.
        """
        self._embeddings = {}
        if len(self.last_blocks) > 1 or self.model.main_input_name == "input_ids":
            return
        for path, shape in shapes.items():
            axes = [axis for axis, size in enumerate(shape[1:], 1) if size == output.shape[1]]
            if output.ndim == 3 and shape[:1] == output.shape[:1] and len(axes) == 1:
                self._embeddings[path] = (shape, axes[0])

    def _replace_block(self, path: str, forward: Any, patches: ExitStack) -> None:
        patches.enter_context(in_place_of(self.model.get_submodule(path), forward))

    def _record(
        self, path: str, forward: Any, outputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Stand-in of a frozen block in the prefix: it runs, and its output is remembered."""
        output = forward(*args, **kwargs)
        self._structures[path] = _structure_of(path, output, _tensors(args, kwargs))
        if path in self.last_blocks:
            outputs[path] = output
            if len(outputs) == len(self.last_blocks):
                raise _AllRecordedError
        return output

    def _replace_inputs(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Take the activations out of the model's arguments, and add zeros for absent inputs.

        The embeddings still run, since they are no block, and need images of the right shape. What
        they make of zeros goes no further than the first stand-in.
        """
        names = [name for name in kwargs if name.startswith(BLOCK_OUTPUT)]
        self._activations = {name: kwargs.pop(name) for name in names}
        some = self._activations[names[0]]
        for name, (shape, mask) in self._absent_inputs.items():
            # A sound is as long as its mask.
            length = shape[0] if mask is None else kwargs[mask].shape[1]
            kwargs[name] = _zeros(some, (len(some), length, *shape[1:]))
        return args, kwargs

    def _replay(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Stand-in of the last frozen block in the suffix: it returns what was recorded.

        Trimmed positions are zeros; nothing reads them, but the suffix counts on their number,
        which is that of the block's input.
        """
        structure = self._structures[path]
        leaves = list(structure.leaves)
        for leaf in structure.tensors:
            name = self._name(path, leaf)
            if name not in self._activations:
                continue
            leaves[leaf] = self._activations[name]
            if name in self.positions_read:
                trimmed = _tensors(args, kwargs)[0].shape[1] - self.positions_read[name]
                leaves[leaf] = F.pad(leaves[leaf], (0, 0, 0, trimmed))
        return tree_unflatten(leaves, structure.spec)

    def _embed(self, path: str, *_: Any, **__: Any) -> torch.Tensor:
        """Stand-in of a module of the embeddings in the suffix: zeros, as long as activations."""
        shape, axis = self._embeddings[path]
        some = next(iter(self._activations.values()))
        sizes = [len(some), *shape[1:]]
        sizes[axis] = some.shape[1]
        return _zeros(some, sizes)

    def _skip(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Stand-in of an earlier frozen block in the suffix: it returns its input, or zeros.

        Its values do not matter, since the last block's stand-in ignores its input; where they
        reach the logits another way, the check of the first batch refuses the model. But code
        between the blocks runs on them, and needs the shapes that the block returned.
        """
        structure = self._structures[path]
        leaves = list(structure.leaves)
        some = next(iter(self._activations.values()))
        for leaf in structure.tensors:
            leaves[leaf] = _zeros(some, (len(some), *leaves[leaf].shape[1:]))
        if structure.keeps_shape:
            # The batch may be longer or shorter than the recorded one, as its input is.
            leaves[structure.tensors[0]] = _tensors(args, kwargs)[0]
        return tree_unflatten(leaves, structure.spec)

    def _name(self, path: str, leaf: int) -> str:
        return f"{BLOCK_OUTPUT}{self.last_blocks.index(path)}_{leaf}"


class _AllRecordedError(Exception):
    """All activations are recorded: the rest of the model need not run."""


def _called_modules(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """The modules of blocks that are called: a block, or the members of a plain list."""
    called = []
    for path in paths:
        module = model.get_submodule(path)
        if isinstance(module, nn.ModuleList):
            called += _called_modules(model, [f"{path}.{n}" for n in range(len(module))])
        else:
            called.append(path)
    return called


def _structure_of(path: str, output: Any, inputs: list[torch.Tensor]) -> _OutputStructure:
    """The structure of a block's output; the values themselves need not stay in memory."""
    leaves, spec = tree_flatten(output)
    tensors = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    floating = [n for n in tensors if leaves[n].is_floating_point()]
    if not floating:
        raise UnsplittableError(f"{path} returns no tensor of floating point")
    if len(floating) < len(tensors):
        raise UnsplittableError(f"{path} also returns a tensor of integers")
    keeps_shape = bool(inputs) and leaves[floating[0]].shape == inputs[0].shape
    for n in floating:
        leaves[n] = _zeros(leaves[n], leaves[n].shape)
    return _OutputStructure(spec, leaves, floating, keeps_shape)


def _zeros(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Zeros that take the memory of one number."""
    return like.new_zeros(1).expand(tuple(shape))


def _count_positions(gradient: torch.Tensor | None) -> int:
    """How many positions, from the first, have all of a gradient (rows, positions, width)."""
    if gradient is None:
        return 0
    read = gradient.abs().amax((0, 2)).nonzero()
    return int(read[-1]) + 1 if len(read) else 0


def _keep_shape(
    shapes: dict[str, torch.Size], path: str, _: nn.Module, __: Any, output: Any
) -> None:
    if isinstance(output, torch.Tensor):
        shapes[path] = output.shape


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
