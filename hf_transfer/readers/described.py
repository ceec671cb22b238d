"""Datasets that say which files are their splits: those of the Hub, and folders like them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset_builder
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.csv.csv import CsvConfig
from huggingface_hub import hf_hub_download, snapshot_download

from hf_transfer.errors import UserError, one_line
from hf_transfer.readers.folders import join_tables, read_folder
from hf_transfer.readers.tables import read_table

HUB_FILE = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")


def load_described(name: str, config_name: str | None, **options: Any) -> Mapping[str, Dataset]:
    """A dataset as its own description says; CSV files as read_table reads them."""
    with readable():
        builder = load_dataset_builder(name, config_name, **options)
        if isinstance(builder, AudioFolder):  # it would encode all sounds anew, with torchcodec
            is_local = Path(name).is_dir()
            folder = name if is_local else snapshot_download(name, repo_type="dataset", **options)
            return read_folder(Path(folder), "audio")
        files = builder.config.data_files
        if isinstance(builder.config, CsvConfig) and files and not builder.config.names:
            return {str(split): _read_csv_files(paths) for split, paths in files.items()}
        builder.download_and_prepare()
        return builder.as_dataset()


def _read_csv_files(files: Iterable[str]) -> Dataset:
    return join_tables([read_table(_local(file)) for file in files])


def _local(file: str) -> Path:
    """The path of a data file, downloaded if it is on the Hub."""
    found = HUB_FILE.fullmatch(file)
    if found is None:
        return Path(file)
    repository, revision, name = found.groups()
    return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))


@contextmanager
def readable() -> Iterator[None]:
    try:
        yield
    # Causes: damaged files, labels that are named twice, columns that differ between files.
    except (DatasetsError, ValueError, OSError) as error:
        raise UserError(
            f"cannot read the dataset: {one_line(error.__cause__ or error)}",
            "give a folder of images per class, or CSV / JSON Lines / Parquet files, "
            "named train, validation, test",
        ) from error
