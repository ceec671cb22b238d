"""A model in two parts: a frozen prefix, which runs once, and a suffix, which runs on its output.

At a linear head the activations between them are the features that it reads. Elsewhere they are
the outputs of blocks (frozen/block_split.py). Nothing is known of the architecture in either case:
the first batch is computed in two parts and as one, and where the logits differ, or a part fails,
the model is refused with UnsplittableError.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hf_transfer.errors import UserError
from hf_transfer.frozen.block_split import BLOCK_OUTPUT, BlockSplit, Tensors, UnsplittableError
from hf_transfer.models.head import find_linear_head, read_logits
from hf_transfer.models.layers import layer_map

Boundary = Literal["head"] | int

TOLERANCE = (1e-4, 1e-5)  # relative and absolute, of logits in float32
FEATURES = "features"  # the activation at a linear head
# What code of any architecture raises where it meets activations that it does not expect.
SUFFIX_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


def split_model(model: Any, boundary: Boundary, keeps_all: bool = False) -> "CheckedSplit":
    """A model split at the head, or behind a number of frozen stages (embeddings, layer 1, ...).

    At a head of one linear layer the activation is "features" (rows, width), the input of this
    layer; elsewhere it is the output of the last frozen block of each tower, at all positions if it
    `keeps_all`, else at those that the layers above read. The model must be in
    eval mode when `prefix` is first called. Raises ValueError for a number of stages that the model
    does not have, and UnsplittableError, at the latest in the first call of `prefix`, where the two
    parts do not reproduce its logits.
    """
    stages = len(layer_map(model).stages)
    if boundary == "head":
        layer = find_linear_head(model)
        split = FeatureSplit(model, layer) if layer else BlockSplit(model, stages - 1)
        return CheckedSplit(model, boundary, split)
    if not 1 <= boundary < stages:
        raise ValueError(
            f"{boundary} frozen stages: the model has {stages}, give 1 to {stages - 1}"
        )
    return CheckedSplit(model, boundary, BlockSplit(model, boundary, keeps_all))


def is_activation(name: str) -> bool:
    """Whether a tensor that `prefix` returns is an activation, not an input of the model."""
    return name == FEATURES or name.startswith(BLOCK_OUTPUT)


@dataclass(frozen=True)
class FeatureSplit:
    """Split before a linear output layer, called `layer`: the activation is its input."""

    model: Any
    layer: str

    def prefix(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """{"features": (rows, width)}.

        Decoders apply the layer at every position, then read the last token or the mean. The layer
        is linear, so the same selection or mean of its inputs gives the same logits. Its weights
        are found as the gradient of a logit with respect to the layer's outputs.
        """
        seen: Tensors = {}

        def record(
            _: nn.Module, inputs: Sequence[torch.Tensor], outputs: torch.Tensor
        ) -> torch.Tensor:
            # From here on only: for the body no graph is kept.
            torch.set_grad_enabled(True)
            seen["inputs"] = inputs[0].detach()
            seen["outputs"] = outputs.detach().requires_grad_()
            return seen["outputs"]

        handle = self.model.get_submodule(self.layer).register_forward_hook(record)
        try:
            with torch.no_grad():
                logits = read_logits(self.model(**inputs))
                # Rows are independent, and every label has the same weights: one stands for all.
                first_label = logits[:, 0].sum()
        finally:
            handle.remove()
        if not seen:
            raise UnsplittableError(f"{self.layer} did not run")
        if seen["outputs"].shape == logits.shape:
            return {FEATURES: seen["inputs"]}
        (gradient,) = torch.autograd.grad(first_label, seen["outputs"])
        weights = gradient[..., :1].flatten(1, -2)
        return {FEATURES: (weights * seen["inputs"].flatten(1, -2)).sum(1)}

    def suffix(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits (rows, labels) of features."""
        return self.model.get_submodule(self.layer)(activations[FEATURES])


@dataclass
class CheckedSplit:
    """A split whose first batch is computed in two parts and as one.

    suffix(prefix(inputs)) are the logits of inputs.
    """

    model: Any
    boundary: Boundary
    split: FeatureSplit | BlockSplit
    is_checked: bool = False

    def prefix(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """The activations; in the first call UnsplittableError if they do not give the logits."""
        if torch.is_inference_mode_enabled():
            raise UserError(
                "the parts of a model do not run in torch.inference_mode(): its tensors could not "
                "be learned from",
                "use torch.no_grad()",
            )
        if self.is_checked:
            return self.split.prefix(inputs)
        with torch.no_grad(), torch.random.fork_rng():
            # The same seed for both, since some models (Reformer, Yoso) hash at random.
            torch.manual_seed(0)
            expected = read_logits(self.model(**inputs))
            torch.manual_seed(0)
            activations = self.split.prefix(inputs)
            try:
                if isinstance(self.split, BlockSplit):
                    activations = self.split.trim(activations)
                logits = self.split.suffix(activations)
            except SUFFIX_ERRORS as error:
                raise UnsplittableError(
                    f"the layers above the boundary do not run on activations: {error}"
                ) from error
        if logits.shape != expected.shape or not torch.allclose(logits, expected, *TOLERANCE):
            raise UnsplittableError("its two parts do not give the logits of the complete model")
        self.is_checked = True
        return activations

    def suffix(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits (rows, labels) of activations."""
        return self.split.suffix(activations)

    @property
    def inputs_read(self) -> set[str]:
        """The inputs that the suffix takes beside the activations."""
        return set(self.split.inputs_read) if isinstance(self.split, BlockSplit) else set()

    @property
    def positions_read(self) -> dict[str, int]:
        """Of an activation, how many positions are stored, where not all are."""
        return dict(self.split.positions_read) if isinstance(self.split, BlockSplit) else {}

    @property
    def last_output(self) -> str:
        """The name of the activation right below the boundary, after the first batch."""
        return self.split.last_output if isinstance(self.split, BlockSplit) else FEATURES

    def replaying(self) -> AbstractContextManager[None]:
        """The context in which the model trains on what `prefix` returns in place of its inputs."""
        return self.split.replaying() if isinstance(self.split, BlockSplit) else nullcontext()
