"""`hf-transfer embed MODEL DATA`: a vector for each input of a dataset, in a file."""

import argparse
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Add the command `embed`."""
    parser = subparsers.add_parser(
        "embed", help="write the vectors that a model makes of images, texts or sounds"
    )
    parser.add_argument("model", help="model id on the Hub, folder, builtin:NAME, or a run")
    parser.add_argument("data", help="what --dataset_name of a recipe takes; labels may be missing")
    parser.add_argument(
        "flags",
        nargs=argparse.REMAINDER,
        help="--output, --layer, --pooling, ...: hf-transfer embed MODEL DATA --help lists them",
    )
    parser.set_defaults(action=write_embeddings)


def write_embeddings(arguments: argparse.Namespace) -> None:
    """Write id, label and vector of every input, from the store or after one pass."""
    from hf_transfer.cli.flags import read_flags, short_name
    from hf_transfer.config.bounds import require_in_bounds
    from hf_transfer.config.cache import CacheConfig
    from hf_transfer.config.data import SourceConfig
    from hf_transfer.config.embed import EmbedConfig

    sys.argv[0] = "hf-transfer embed MODEL DATA"  # as --help shows it
    words = ["--dataset_name", arguments.data, *arguments.flags]
    options, source, cache = groups = read_flags([EmbedConfig, SourceConfig, CacheConfig], words)
    for group in groups:
        for each in fields(group):
            require_in_bounds(each, getattr(group, each.name))
    default = f"{short_name(arguments.model)}-{short_name(arguments.data)}.parquet"
    output = Path(options.output or default).expanduser()
    from hf_transfer.embeddings import embed_dataset, require_output

    require_output(output)
    found = embed_dataset(arguments.model, source, options, cache)
    found.save(output)
    rows, width = found.vectors.shape
    origin = "computed now (miss)" if found.computed else "from the store (hit)"
    log.info("%s: %d vectors of %d numbers, %s: %s", output, rows, width, found.meaning, origin)
