"""A test split says something only if it has labels, and no training rows."""

from collections.abc import Mapping

from datasets import Dataset, Value

from hf_transfer.data.checks import input_digests
from hf_transfer.errors import UserError

UNLABELLED = -1  # in place of a label, as in the test splits of GLUE
FEWEST_ROWS = 10  # different ones: a few may well occur in two splits


def require_different(names: Mapping[str, str | None]) -> None:
    """Raise UserError if two roles ("train", "validation", "test") name the same split."""
    roles: dict[str, str] = {}
    for role, name in names.items():
        if name is None:
            continue
        if name in roles:
            raise UserError(
                f"--{role}_split {name} is the {_noun(roles[name])} split too",
                f"leave out --{role}_split: without one, {_offer(role)}",
            )
        roles[name] = role


def require_labelled(splits: Mapping[str, Dataset], label: str) -> None:
    """Raise UserError for a split whose labels are all -1, unless training rows have that label.

    In a ClassLabel -1 is out of range anyway.
    """
    train = splits["train"]
    if not _has_whole_numbers(train, label) or UNLABELLED in train.unique(label):
        return
    for split, rows in splits.items():
        if _has_whole_numbers(rows, label) and set(rows.unique(label)) == {UNLABELLED}:
            raise UserError(
                f"the split {split!r} has no labels: all of them are {UNLABELLED}",
                f"name another --{split}_split",
            )


def require_held_out(rows: Mapping[str, Dataset]) -> None:
    """Raise UserError if all rows of a held-out split stand in the training split, too."""
    train: set[str] | None = None
    for split in ("test", "validation"):
        if split in rows and len(rows[split]):
            held_out = input_digests(rows[split])
            train = input_digests(rows["train"]) if train is None else train
            if len(held_out) >= FEWEST_ROWS and held_out <= train:
                raise UserError(
                    f"all {len(rows[split])} rows of the {split} split are training rows, too",
                    f"give a {split} split of other rows; without one, {_offer(split)}",
                )


def _has_whole_numbers(rows: Dataset, label: str) -> bool:
    feature = rows.features[label]
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))


def _noun(role: str) -> str:
    return "training" if role == "train" else role


def _offer(role: str) -> str:
    if role == "test":
        return "a fifth of the training rows is held out"
    return "15 % of the training rows are held out, if they are enough"
