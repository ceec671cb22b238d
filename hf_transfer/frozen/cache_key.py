"""The key of cached activations: a digest of all that decides what the frozen layers compute.

The facts are hashed as they are, names included: whoever renames one of them makes every stored
entry a miss.
"""

import inspect
import json
import sys
from importlib.metadata import version
from pathlib import Path

import xxhash
from datasets import Dataset
from torch import nn

from hf_transfer.data.checks import DIGEST, content_digest
from hf_transfer.frozen.forward_pass import FrozenLayers
from hf_transfer.models.weights import partial_weights_digest
from hf_transfer.store.activations import digest

VERSION = 1  # of our own computation: raise it where the same inputs give other activations
# Columns of the rows that the model does not read.
NOT_INPUTS = ("label", "id", "length", "row")
# Entries of the model's config that describe the head, or only where the weights came from.
NOT_COMPUTED_WITH = (
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "_name_or_path",
    "transformers_version",
    "dtype",
)
# Libraries whose version says which code they run.
VERSIONED = ("torch", "transformers")


def cache_key(layers: FrozenLayers, rows: Dataset) -> str:
    """The key of the activations of rows: sha256 in hex.

    Labels, seeds and all that is above the boundary do not change it.
    """
    model = layers.split.model
    view = layers.view
    config = json.loads(model.config.to_json_string(use_diff=False))
    inputs = [name for name in rows.column_names if name not in NOT_INPUTS]
    if DIGEST in inputs:
        inputs = [DIGEST]  # of the image's file
    # Augmented images depend on the batch size too: each batch has its own seed.
    augmented = view and (view.number, view.augmentation, layers.batch_size, version("kornia"))
    reduced = {"mean": "positions"} if layers.averages else {}
    for name in NOT_COMPUTED_WITH:
        config.pop(name, None)
    facts = {
        "ours": VERSION,
        "class": type(model).__name__,
        "code": _code_digest(model),
        "config": config,
        "boundary": str(layers.split.boundary),
        "positions": layers.split.positions_read,
        "weights": partial_weights_digest(model, layers.above),
        "encoder": layers.encoder.facts,
        "rows": content_digest(rows, inputs),
        "view": augmented or 0,
        "versions": {name: version(name) for name in VERSIONED},
        "device": next(model.parameters()).device.type,
        "format": layers.dtype,
        **reduced,
    }
    return digest(facts)


def _code_digest(model: nn.Module) -> str:
    """Of the source files of modules outside the libraries in VERSIONED: remote code."""
    hasher = xxhash.xxh3_128()
    for name in sorted({type(module).__module__ for module in model.modules()}):
        if name.partition(".")[0] not in VERSIONED:
            hasher.update(Path(inspect.getfile(sys.modules[name])).read_bytes())
    return hasher.hexdigest()
