"""A forward pass of the frozen layers over all rows of a dataset, checked on a sample first."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_transfer.data.augmentation import Augment
from hf_transfer.data.encode import LENGTHS, Encoder
from hf_transfer.frozen.precision import in_bfloat16, in_dtype_of, to_float32, to_numpy
from hf_transfer.frozen.split import FEATURES, CheckedSplit, UnsplittableError, is_activation
from hf_transfer.strategies.plan import FrozenDtype

log = logging.getLogger(__name__)

SAMPLE_ROWS = 8  # that are computed twice before all others, and from which the size is estimated
# Relative difference of activations in bfloat16 from those in float32. The rounding of bfloat16
# itself, over several layers, stays below.
MAX_BFLOAT16_DIFFERENCE = 0.03
# Relative difference, in float32, between a row padded to the longest of its batch and the same
# row alone. Where it is larger, training would see other activations in each epoch.
MAX_PADDING_DIFFERENCE = 1e-3

Row = dict[str, np.ndarray]  # name of an activation -> that of one row, without padding


@dataclass(frozen=True)
class View:
    """An augmented version of all images: `number` from 1, `augmentation` names `augment`."""

    number: int
    augmentation: str
    augment: Augment | None


@dataclass(frozen=True)
class FrozenLayers:
    """The frozen layers of a model, and how rows are passed through them.

    `above` names the parameters above the boundary, which do not influence the activations.
    With `averages` the activation is "features" (width,): the mean of a layer's output over all
    positions. Without a `view` images are passed as they are. `about` describes the activations to
    people.
    """

    split: CheckedSplit
    above: frozenset[str]
    encoder: Encoder
    batch_size: int
    workers: int = 0
    quiet: bool = False
    dtype: FrozenDtype = "float32"
    averages: bool = False
    view: View | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ForwardPass:
    """Frozen layers and the rows to pass through them, in `order`.

    `lengths` (rows,) are in tokens or samples, 0 for inputs of one size.
    """

    layers: FrozenLayers
    rows: Dataset
    lengths: np.ndarray
    order: np.ndarray

    @property
    def batches(self) -> list[np.ndarray]:
        """The row numbers of each batch."""
        return self.group(self.order, self.layers.batch_size)

    def group(self, rows: np.ndarray, size: int) -> list[np.ndarray]:
        """Row numbers in batches of at most `size`, of one length where the encoder wants it."""
        parts = [rows]
        if self.layers.encoder.equal_lengths:
            parts = np.split(rows, np.flatnonzero(np.diff(self.lengths[rows])) + 1)
        cut = ((part, range(0, len(part), size)) for part in parts)
        return [part[start : start + size] for part, starts in cut for start in starts]

    def run(self, batches: Sequence[np.ndarray], quiet: bool = False) -> Iterator[list[Row]]:
        """The activations of batches of row numbers: a list of rows for each batch."""
        loader = DataLoader(
            self.rows,
            batch_sampler=[batch.tolist() for batch in batches],
            collate_fn=self.layers.encoder.collate,
            num_workers=0 if quiet else self.layers.workers,
        )
        silent = quiet or self.layers.quiet or not PartialState().is_local_main_process
        progress = tqdm(loader, desc="frozen layers", disable=silent)
        for batch, inputs in zip(batches, progress, strict=True):
            yield self._compute(inputs, batch)

    def _compute(self, inputs: dict[str, torch.Tensor], batch: np.ndarray) -> list[Row]:
        model = self.layers.split.model
        dtype = self.layers.dtype
        device = next(model.parameters()).device
        inputs = {
            name: tensor.to(device)
            for name, tensor in inputs.items()
            if name not in ("labels", LENGTHS)
        }
        inputs = self.layers.encoder.finish(inputs)
        self._augment(inputs, int(batch[0]))
        with in_bfloat16(model) if dtype == "bfloat16" else nullcontext():
            outputs = self.layers.split.prefix(in_dtype_of(model, inputs))
        lengths = self.lengths[batch]
        padded = int(lengths.max())
        rows: list[Row] = [{} for _ in batch]
        averages = self.layers.averages
        names = [self.layers.split.last_output] if averages else filter(is_activation, outputs)
        for name in names:
            array = to_numpy(outputs[name], dtype)
            is_padded = padded and array.ndim > 2 and array.shape[1] == padded
            for number, length in enumerate(lengths):
                own = self._unpadded(array[number], length) if is_padded else array[number]
                rows[number][FEATURES if averages else name] = mean(own) if averages else own
        return rows

    def _augment(self, inputs: dict[str, torch.Tensor], first_row: int) -> None:
        """Replace the images of a batch by those of the view, if there is one."""
        view = self.layers.view
        if view is not None and view.augment is not None:
            # Seeded by the batch, so that it does not matter which process computes it.
            with torch.random.fork_rng():
                torch.manual_seed(view.number * len(self.rows) + first_row)
                inputs["pixel_values"] = view.augment(inputs["pixel_values"])

    def _unpadded(self, array: np.ndarray, length: int) -> np.ndarray:
        return array[len(array) - length :] if self.layers.encoder.pads_left else array[:length]


def mean(output: np.ndarray) -> np.ndarray:
    """(width,) the mean over positions (positions, width), or over a map (width, side, side).

    Raises UnsplittableError for what is neither.
    """
    if output.ndim == 3 and output.shape[1] == output.shape[2]:
        return output.mean((1, 2))
    if output.ndim > 2:
        raise UnsplittableError(f"which axis of {output.shape} is the width is not clear")
    return output if output.ndim == 1 else output.mean(0)


def longest_first(layers: FrozenLayers, rows: Dataset) -> ForwardPass:
    """A pass that begins with the longest rows: a lack of memory shows in the first batch."""
    by_length = layers.encoder.by_length
    lengths = np.asarray(rows["length"][:]) if by_length else np.zeros(len(rows), int)
    return ForwardPass(layers, rows, lengths, np.argsort(-lengths, kind="stable"))


def check_on_sample(forward_pass: ForwardPass) -> tuple[ForwardPass, list[Row]]:
    """The pass, in float32 if bfloat16 is too coarse for it, and the activations of a sample.

    The sample is also the first batch of the split, which is checked on it. Raises
    UnsplittableError.
    """
    layers = forward_pass.layers
    rows = len(forward_pass.order)
    count = min(SAMPLE_ROWS, rows)
    # Evenly spaced in the order of lengths, so that their mean size is that of all rows.
    chosen = forward_pass.order[((np.arange(count) + 0.5) / count * rows).astype(int)]
    precise = replace(forward_pass, layers=replace(layers, dtype="float32"))
    # The shortest row of the sample is computed beside longer ones, and alone.
    groups = precise.group(chosen, count)
    *computed, alone = precise.run([*groups, chosen[-1:]], quiet=True)
    sample = list(itertools.chain.from_iterable(computed))
    _require_light_inputs(layers, forward_pass.rows.select(chosen))
    _require_same_without_padding(alone[0], sample[-1], layers.encoder.by_length)
    if layers.dtype == "float32":
        return forward_pass, sample
    coarse = list(itertools.chain.from_iterable(forward_pass.run(groups, quiet=True)))
    worst = max(map(_difference, coarse, sample))
    reason = first_reason(None if worst <= MAX_BFLOAT16_DIFFERENCE else f"{worst:.1%}")
    if reason is None:
        return forward_pass, coarse
    log.warning(
        "the frozen layers are computed in float32: bfloat16 changes their activations by %s",
        reason,
    )
    return precise, sample


def first_reason(reason: str | None) -> str | None:
    """The first reason that any process has, or None: so all processes do the same."""
    return next(filter(None, gather_object([reason])), None)


def _require_light_inputs(layers: FrozenLayers, rows: Dataset) -> None:
    missing = layers.split.inputs_read - set(layers.encoder.light(list(rows)))
    if missing:
        names = ", ".join(sorted(missing))
        reason = f"the layers above the boundary also read {names}, which are not cached"
        raise UnsplittableError(reason)


def _require_same_without_padding(alone: Row, padded: Row, by_length: bool) -> None:
    for name, array in alone.items():
        if array.shape != padded[name].shape:
            raise UnsplittableError(
                f"the shape of {name} depends on the length of the batch, not of the row"
            )
    if by_length and _difference(alone, padded) > MAX_PADDING_DIFFERENCE:
        raise UnsplittableError("the activations of a row depend on the padding beside it")


def _difference(row: Row, other: Row) -> float:
    """The largest difference between an activation of two rows, relative to that of the other.

    In the norm; NaN where the first activation is not finite.
    """
    differences = []
    for name, array in row.items():
        base = to_float32(other[name])
        differences.append((to_float32(array) - base).norm() / base.norm().clamp(min=1e-12))
    return float(max(differences))
