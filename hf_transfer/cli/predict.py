"""`hf-transfer predict MODEL INPUT ...`: the predictions of a fine-tuned model, one per line."""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from hf_transfer.errors import UserError


def add_parser(subparsers: Any) -> None:
    """Add the command `predict`."""
    parser = subparsers.add_parser("predict", help="classify images or texts with a model")
    parser.add_argument("model", help="folder of a run, or model id on the Hub")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, folders of images, or texts; - reads lines from standard input",
    )
    parser.add_argument(
        "--top_k",
        type=int,
        help="number of predictions per input (default: 1; multi-label: all above 0.5)",
    )
    parser.set_defaults(action=print_predictions)


def print_predictions(arguments: argparse.Namespace) -> None:
    """Print input, label and probability (regression: the number), separated by tabs."""
    from hf_transfer.inference import classify, load_pipeline

    top_k = arguments.top_k
    if top_k is not None and top_k < 1:
        raise UserError(f"--top_k {top_k} is too small", "give 1 or more")
    pipeline, modality = load_pipeline(arguments.model)
    rows = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    for name, value in _read_inputs(arguments.inputs, modality):
        for answer in classify(pipeline, value, top_k):
            rows.writerow([name, *answer])


def _read_inputs(inputs: list[str], modality: str) -> list[tuple[str, object]]:
    """Pairs of a name to print and what the model reads."""
    words = [line.rstrip("\n") for line in sys.stdin] if inputs == ["-"] else inputs
    if modality == "text":
        return list(zip(words, words, strict=True))
    paths = [path for word in words for path in _files_at(Path(word))]
    return list(zip(map(str, paths), map(_open_image, paths), strict=True))


def _open_image(path: Path) -> object:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(
            f"no file {str(path)!r}", "this model classifies images: name files or folders"
        ) from error
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(
            f"{str(path)!r} is not an image that can be read", "leave it out or fix it"
        ) from error


def _files_at(path: Path) -> list[Path]:
    return sorted(filter(Path.is_file, path.rglob("*"))) if path.is_dir() else [path]
