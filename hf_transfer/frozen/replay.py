"""Rows and batches in which activations stand for the inputs of the frozen layers."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Audio, Dataset, Image, concatenate_datasets

from hf_transfer.data.encode import LENGTHS, POSITIONS, Collate, Encoder
from hf_transfer.frozen.features import Features

# Columns that say where the activations of a row are: the number of the row in its split, that of
# the split, and that of the view.
PLACE = ("row", "split", "view")


def replay_rows(rows: Dataset, split: int, views: int = 1) -> Dataset:
    """The rows without images and sounds, which the frozen layers alone read, once for each view.

    The columns of PLACE are added; the rows of a view follow one another.
    """
    files = [name for name, feature in rows.features.items() if isinstance(feature, (Image, Audio))]
    light = rows.remove_columns(files).add_column("row", list(range(len(rows))))
    light = light.add_column("split", [split] * len(rows))
    each_view = [light.add_column("view", [view] * len(rows)) for view in range(views)]
    return concatenate_datasets(each_view)


def replay_collate(encoder: Encoder, features: Sequence[Sequence[Features]]) -> Collate:
    """The collator of rows from `replay_rows`: ids, masks and labels, with the activations.

    `features[split][view]` are those of a split in one view. All are padded to the same length.
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        activations: dict[str, list[torch.Tensor]] = {}
        light = []
        for row in rows:
            place = features[row["split"]][row["view"]]
            for name, tensor in place.read(row["row"]).items():
                activations.setdefault(name, []).append(tensor)
            light.append({name: row[name] for name in row if name not in PLACE})
        batch = encoder.light(light)
        for name, tensors in activations.items():
            length = max(map(len, tensors))
            if LENGTHS in batch:
                batch[POSITIONS] = torch.tensor(list(map(len, tensors)))
            if "input_ids" in batch:
                length = batch["input_ids"].shape[1]
            batch[name] = _stack(tensors, length, encoder.pads_left)
        for each in itertools.chain(*features):
            each.release_memory()
        return batch

    return collate


def _stack(tensors: list[torch.Tensor], length: int, pads_left: bool) -> torch.Tensor:
    """(rows, ...); where the lengths differ, the first axis of each is zero-padded to `length`."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    stacked = torch.zeros(len(tensors), length, *tensors[0].shape[1:])
    for number, tensor in enumerate(tensors):
        start = length - len(tensor) if pads_left else 0
        stacked[number, start : start + len(tensor)] = tensor
    return stacked
