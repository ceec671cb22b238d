"""Flags: which vectors of a checkpoint, for which rows, and where they are written."""

from dataclasses import dataclass
from typing import Literal

from hf_transfer.config.flag import flag


@dataclass(frozen=True)
class EmbedConfig:
    """Feature extraction: the layer, the rows and the output file."""

    _argument_group_name = "embed"

    output: str | None = flag(
        None, "File to write: .parquet or .npz. Default: MODEL-DATASET.parquet."
    )
    layer: str = flag(
        "head",
        "Whose output: head (what a linear head reads), or the number of a layer, counted from 1 "
        "(the mean over all its positions).",
    )
    pooling: Literal["own", "mean"] = flag(
        "own",
        "What the head reads of a text. own: as the network was made; mean: the mean over all "
        "tokens.",
    )
    dataset_split: str | None = flag(None, "Name of the split. Default: all, one after another.")
    task: str | None = flag(
        None,
        "Task that says how inputs are read, where the model does not tell. token-classification: "
        "a vector per word.",
    )
    model_revision: str = flag("main", "Branch, tag or commit of the checkpoint.")
    trust_remote_code: bool = flag(
        False, "Run the Python code that the checkpoint's repository contains."
    )
    per_device_eval_batch_size: int = flag(32, "Batch size.", minimum=1)
