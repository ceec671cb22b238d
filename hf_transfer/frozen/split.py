"""A network in two: what is frozen is computed once, and the rest is run, and trained, on what it gave.

Nothing is known of the architecture. While the upper part runs, the frozen blocks are replaced by stand-ins: the last
of each tower gives what was recorded, those before it hand on their input. Masks, positions and what stands between
the blocks stay the model's own business. The first batch is computed both ways: a model that cannot be split says so.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hf_transfer.models.head import find_linear_head, in_place_of, read_logits
from hf_transfer.models.layers import layer_blocks, layer_map

Tensors = dict[str, torch.Tensor]
Boundary = Literal["head"] | int

ROUNDING = (1e-4, 1e-5)  # relative, absolute: what 32 bits leave open
RECORDED = "frozen_"  # how the names of recorded tensors begin
MOST_READ = 4  # positions that count as few: those of class and distillation tokens


class UnsplittableError(Exception):
    """A network whose parts cannot be told apart at this boundary: it is run whole."""


class SplitModel(Protocol):
    """A model of which a part is computed beforehand: suffix(prefix(inputs)) are the logits of inputs."""

    def prefix(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """What the frozen part gives for a batch, every tensor (rows, ...), and what the rest needs of the inputs."""

    def suffix(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits for what prefix gave."""


def split_model(model: Any, boundary: Boundary) -> "CheckedSplit":
    """A model in two at the head, or behind a number of frozen stages (embeddings, layer 1, ...).

    At a head of one linear layer `prefix` gives "features" (rows, width), what this layer reads; elsewhere the outputs
    of the last frozen block of each tower. The model must be in eval mode when `prefix` is first called. Raises
    UnsplittableError, at the latest then, where the two parts do not give what the whole gives; ValueError for a number
    of stages that it does not have.
    """
    stages = len(layer_map(model).stages)
    if boundary == "head":
        layer = find_linear_head(model)
        split = FeatureSplit(model, layer) if layer else ReplaySplit(model, stages - 1)
        return CheckedSplit(model, boundary, split)
    if not 1 <= boundary < stages:
        raise ValueError(
            f"{boundary} frozen stages: the model has {stages}, give 1 to {stages - 1}"
        )
    return CheckedSplit(model, boundary, ReplaySplit(model, boundary))


@dataclass(frozen=True)
class FeatureSplit:
    """Split before a linear output layer, at `layer`: activations are the features that it reads."""

    model: Any
    layer: str

    def prefix(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """{"features": (rows, width)}.

        A layer that answers at every position is read at some of them only, or at their mean: the gradient of a logit
        with respect to its answers says with which weights, and the features are summed with the same.
        """
        seen: Tensors = {}

        def watch(
            module: nn.Module, arguments: tuple[torch.Tensor, ...], answers: torch.Tensor
        ) -> torch.Tensor:
            torch.set_grad_enabled(
                True
            )  # for what follows the layer; the body before it keeps nothing for gradients
            seen["read"], seen["answers"] = arguments[0].detach(), answers.detach().requires_grad_()
            return seen["answers"]

        handle = self.model.get_submodule(self.layer).register_forward_hook(watch)
        try:
            with torch.no_grad():
                logits = read_logits(self.model(**inputs))
                first = logits[:, 0].sum()
        finally:
            handle.remove()
        if "read" not in seen:
            raise UnsplittableError(f"{self.layer} did not run")
        if seen["answers"].shape == logits.shape:
            return {"features": seen["read"]}
        (weights,) = torch.autograd.grad(first, seen["answers"])
        positions = weights[..., :1].flatten(1, -2)
        return {"features": (positions * seen["read"].flatten(1, -2)).sum(1)}

    def suffix(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(rows, labels)."""
        return self.model.get_submodule(self.layer)(activations["features"])


@dataclass
class _Form:
    """The structure of a block's output as it was seen first: its leaves, and which of them are recorded."""

    spec: TreeSpec
    leaves: list[Any]
    recorded: list[int]
    keeps_shape: bool  # whether the first tensor has the shape of the block's input


@dataclass
class ReplaySplit:
    """Split behind `frozen` stages: activations are the outputs of the last frozen block of each tower."""

    model: Any
    frozen: int
    cuts: list[str] = field(init=False)
    skipped: list[str] = field(init=False)
    _forms: dict[str, _Form] = field(init=False, default_factory=dict)
    _absent: dict[str, torch.Size] = field(init=False, default_factory=dict)
    needed: set[str] = field(init=False, default_factory=set)
    read: dict[str, int] = field(
        init=False, default_factory=dict
    )  # positions that are kept, where they are few
    _current: Tensors = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        towers = [tower[: max(0, self.frozen - first)] for first, tower in layer_blocks(self.model)]
        blocks = [tower for tower in towers if tower]
        if not blocks:
            raise UnsplittableError(
                "only the embeddings are frozen: they cost less than reading what they give"
            )
        run = [
            [path for parts in tower for part in parts for path in _that_run(self.model, part)]
            for tower in blocks
        ]
        self.cuts = [paths[-1] for paths in run]
        self.skipped = [path for paths in run for path in paths[:-1]]

    def prefix(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Names beginning with RECORDED: what the blocks gave; and all inputs but pictures and sound: ids, masks."""
        rows = len(next(iter(inputs.values())))
        seen: dict[str, Any] = {}
        with torch.no_grad(), ExitStack() as patches:
            for path in (*self.skipped, *self.cuts):
                module = self.model.get_submodule(path)
                patches.enter_context(
                    in_place_of(module, partial(self._watch, path, module.forward, seen))
                )
            with suppress(_AllSeenError):
                self.model(**inputs)
        if set(seen) != set(self.cuts):
            raise UnsplittableError(f"{', '.join(set(self.cuts) - set(seen))} did not run")
        left = {
            n: t
            for n, t in inputs.items()
            if n == self.model.main_input_name and t.is_floating_point()
        }
        kept = {name: tensor for name, tensor in inputs.items() if name not in left}
        self._absent = {name: tensor.shape[1:] for name, tensor in left.items()}
        self.needed = set(kept)
        for path in self.cuts:
            for leaf in self._forms[path].recorded:
                tensor = tree_flatten(seen[path])[0][leaf]
                if len(tensor) != rows:
                    raise UnsplittableError(
                        f"{path} gives a tensor of {len(tensor)} rows for {rows}"
                    )
                name = self._name(path, leaf)
                kept[name] = (
                    tensor.detach()[:, : self.read[name]] if name in self.read else tensor.detach()
                )
        return kept

    def narrow(self, activations: Mapping[str, torch.Tensor]) -> Tensors:
        """The activations without positions that the rest does not read, as `prefix` gives them from now on.

        The gradient of the logits says what is read: the first position or two in many heads, all below a layer with
        attention and where positions are averaged.
        """
        main = {
            f"{RECORDED}{number}_{self._forms[path].recorded[0]}": self._forms[path]
            for number, path in enumerate(self.cuts)
        }
        sequences = {
            n: t.detach().requires_grad_()
            for n, t in activations.items()
            if n in main and main[n].keeps_shape and t.ndim == 3
        }
        narrowed = dict(activations)
        if not sequences:
            return narrowed
        with torch.enable_grad():
            logits = self.suffix({**activations, **{n: t.clone() for n, t in sequences.items()}})
            slopes = torch.autograd.grad(
                (logits * torch.randn_like(logits)).sum(),
                list(sequences.values()),
                allow_unused=True,
            )
        for name, slope in zip(sequences, slopes, strict=True):
            read = _count_read(slope)
            if 0 < read <= MOST_READ < activations[name].shape[1] / 2:
                self.read[name] = read
                narrowed[name] = activations[name][:, :read]
        return narrowed

    def suffix(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(rows, labels)."""
        with self.replaying():
            return read_logits(self.model(**activations))

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Within the context the model takes what `prefix` gives in place of its inputs."""
        with ExitStack() as patches:
            handle = self.model.register_forward_pre_hook(self._take, with_kwargs=True)
            patches.callback(handle.remove)
            for path in self.skipped:
                patches.enter_context(
                    in_place_of(self.model.get_submodule(path), partial(self._hand_on, path))
                )
            for path in self.cuts:
                patches.enter_context(
                    in_place_of(self.model.get_submodule(path), partial(self._replay, path))
                )
            yield

    def _watch(
        self, path: str, forward: Any, seen: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        output = forward(*args, **kwargs)
        leaves, spec = tree_flatten(output)
        recorded = [
            n
            for n, leaf in enumerate(leaves)
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        ]
        if not recorded:
            raise UnsplittableError(f"{path} gives no tensor")
        first = _first_tensor(args, kwargs)
        shape = None if first is None else first.shape
        for leaf in (
            recorded
        ):  # one number in the shape of all: the values themselves need not stay in memory
            leaves[leaf] = leaves[leaf].new_zeros(1).expand(leaves[leaf].shape)
        if any(isinstance(leaf, torch.Tensor) and not leaf.is_floating_point() for leaf in leaves):
            raise UnsplittableError(f"{path} gives whole numbers too")
        self._forms[path] = _Form(spec, leaves, recorded, leaves[recorded[0]].shape == shape)
        if path in self.cuts:
            seen[path] = output
            if len(seen) == len(self.cuts):
                raise _AllSeenError
        return output

    def _take(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Take what is recorded out of the model's arguments, and put zeros of the right shape for what it lacks."""
        self._current = {
            name: tensor for name, tensor in kwargs.items() if name.startswith(RECORDED)
        }
        rest = {name: value for name, value in kwargs.items() if name not in self._current}
        some = next(iter(self._current.values()))
        for name, shape in self._absent.items():
            rest[name] = some.new_zeros(1).expand(len(some), *shape)
        return args, rest

    def _replay(self, path: str, *args: Any, **kwargs: Any) -> Any:
        form = self._forms[path]
        leaves = list(form.leaves)
        for leaf in form.recorded:
            name = self._name(path, leaf)
            leaves[leaf] = self._current[name]
            if name in self.read:
                live = next(
                    value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)
                )
                leaves[leaf] = F.pad(leaves[leaf], (0, 0, 0, live.shape[1] - self.read[name]))
        return tree_unflatten(leaves, form.spec)

    def _hand_on(self, path: str, *args: Any, **kwargs: Any) -> Any:
        form = self._forms[path]
        first, leaves = _first_tensor(args, kwargs), list(form.leaves)
        some = next(iter(self._current.values()))
        for leaf in form.recorded:
            leaves[leaf] = some.new_zeros(1).expand(len(some), *leaves[leaf].shape[1:])
        if form.keeps_shape:
            leaves[form.recorded[0]] = first
        return tree_unflatten(leaves, form.spec)

    def _name(self, path: str, leaf: int) -> str:
        return f"{RECORDED}{self.cuts.index(path)}_{leaf}"


class _AllSeenError(Exception):
    """All that is recorded has been seen: the rest of the network need not run."""


@dataclass
class CheckedSplit:
    """A split whose first batch is computed both ways."""

    model: Any
    boundary: Boundary
    split: SplitModel
    proved: bool = False

    def prefix(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """What the split gives; UnsplittableError if, the first time, its parts do not give what the whole gives."""
        if self.proved:
            return self.split.prefix(inputs)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)  # some networks hash at random
            whole = read_logits(self.model(**inputs))
            torch.manual_seed(0)
            parts = self.split.prefix(inputs)
            try:
                if isinstance(self.split, ReplaySplit):
                    parts = self.split.narrow(parts)
                again = self.split.suffix(parts)
            except (
                RuntimeError,
                ValueError,
                TypeError,
                LookupError,
                AttributeError,
                AssertionError,
            ) as error:
                raise UnsplittableError(f"its upper part does not run alone: {error}") from error
        if again.shape != whole.shape or not torch.allclose(again, whole, *ROUNDING):
            raise UnsplittableError("its parts do not give what the whole gives")
        self.proved = True
        return parts

    def suffix(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(rows, labels)."""
        return self.split.suffix(activations)

    @property
    def needs(self) -> set[str]:
        """The inputs that the rest takes beside what is recorded."""
        return set(self.split.needed) if isinstance(self.split, ReplaySplit) else set()

    @property
    def positions(self) -> dict[str, int]:
        """Of what is recorded, how many positions are kept, where it is few."""
        return dict(self.split.read) if isinstance(self.split, ReplaySplit) else {}

    def replaying(self) -> AbstractContextManager[None]:
        """The context in which the model takes what `prefix` gives in place of its inputs, to be trained."""
        return self.split.replaying() if isinstance(self.split, ReplaySplit) else nullcontext()


def _that_run(model: nn.Module, path: str) -> list[str]:
    """The modules of a block that are called: itself, or where it is a mere list, those in it."""
    module = model.get_submodule(path)
    if not isinstance(module, nn.ModuleList):
        return [path]
    return [inner for n in range(len(module)) for inner in _that_run(model, f"{path}.{n}")]


def _count_read(slope: torch.Tensor | None) -> int:
    """How many positions, from the first, one has to keep to have all with a slope (rows, positions, width)."""
    places: Any = [] if slope is None else slope.abs().amax((0, 2)).nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    return next(
        (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None
    )
