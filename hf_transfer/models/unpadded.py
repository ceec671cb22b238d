"""A batch without its padding: for networks whose answer to a text depends on it."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.nn import functional as F

from hf_transfer.data.encode import LENGTHS
from hf_transfer.models.head import read_logits


def logits_of(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits of a batch of an encoder, computed as training and evaluation do."""
    if LENGTHS in batch:
        return cast(torch.Tensor, run_unpadded(model, **batch)["logits"])
    return read_logits(model(**batch))


def run_unpadded(
    model: Any, lengths: torch.Tensor, positions: torch.Tensor | None = None, **batch: Any
) -> dict[str, Any]:
    """The logits of a batch padded on the right, computed in parts whose rows have one length.

    `lengths` (rows,) are numbers of tokens or samples, `positions` (rows,) those of activations in
    place of these; of `batch` only what has a row for each is read. FNet, for one, mixes all
    positions of a row and has no mask: it answers to a padded text as to another text.
    """
    parts: list[torch.Tensor] = []
    order: list[torch.Tensor] = []
    tensors = {name: tensor for name, tensor in batch.items() if len(getattr(tensor, "shape", ()))}
    for length in torch.unique(lengths):
        rows = torch.nonzero(lengths == length).squeeze(1)
        part = {name: tensor[rows] for name, tensor in tensors.items()}
        for name, tensor in part.items():
            if tensor.ndim > 2 and positions is not None:
                part[name] = tensor[:, : positions[rows[0]]]
            elif tensor.ndim > 1:
                part[name] = tensor[:, :length]
        logits = read_logits(model(**part))
        missing = lengths.max() - logits.shape[1] if logits.ndim == 3 else 0  # of each token
        parts.append(F.pad(logits, (0, 0, 0, int(missing))) if missing else logits)
        order.append(rows)
    return {"logits": torch.cat(parts)[torch.argsort(torch.cat(order))]}
