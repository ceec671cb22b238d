"""Feature extraction: a vector for each input, from one layer and through the store."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from accelerate import PartialState
from datasets import Dataset

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.data import DataConfig, SourceConfig
from hf_transfer.config.embed import EmbedConfig
from hf_transfer.config.model import ModelConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.encode import TextInput
from hf_transfer.data.inputs import Inputs, load_inputs, with_zeros
from hf_transfer.data.sources import Data
from hf_transfer.data.tokens import with_stored_tokens
from hf_transfer.errors import UserError, unknown
from hf_transfer.frozen.features import compute_features
from hf_transfer.frozen.forward_pass import FrozenLayers
from hf_transfer.frozen.phase import compute_layer
from hf_transfer.frozen.split import FEATURES, Boundary, UnsplittableError, split_model
from hf_transfer.job import Job, make_job
from hf_transfer.models.checkpoint import Checkpoint, load_checkpoint, load_preparation
from hf_transfer.models.layers import LayerMap, layer_map
from hf_transfer.models.locate import find_checkpoint_task, locate, read_config
from hf_transfer.models.pooling import UnpoolableError, mean_pooled
from hf_transfer.models.predictor import Predictor
from hf_transfer.sealed import temporary_path
from hf_transfer.tasks import find_task

HEAD_ALONE = ("words have vectors at the head alone", "leave out the layer")


@dataclass(frozen=True)
class Embeddings:
    """A vector for each input, or for each word where words have labels.

    `ids` (n,) are split/row, or split/row/word; `labels` (n,) as stored, classes by name, None
    where a row has none; `files` (n,) as below the dataset's folder, None where an input is none.
    Both are None where no row has any. `vectors` (n, width) float32 are what `meaning` says.
    `computed` is False where all were in the store.
    """

    ids: list[str]
    labels: list[Any] | None
    files: list[str | None] | None
    vectors: np.ndarray
    computed: bool
    meaning: str

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The columns id, file and label, as far as there are any."""
        columns = {"id": self.ids, "file": self.files, "label": self.labels}
        return {name: values for name, values in columns.items() if values is not None}

    def save(self, path: Path) -> None:
        """Write a file, replaced in one step: Parquet or NumPy's npz, by its ending.

        Raises UserError where it cannot be written.
        """
        require_output(path)
        stage = temporary_path(path)
        try:
            with stage.open("wb") as file:
                WRITERS[path.suffix](self, file)
            stage.replace(path)
        except OSError as error:
            raise UserError(
                f"cannot write {str(path)!r}: {error.strerror}", "see --output"
            ) from error
        finally:
            stage.unlink(missing_ok=True)


def embed(
    predictor: Predictor, rows: Iterable[Mapping[str, Any]], layer: str = "head"
) -> np.ndarray:
    """(rows, width) float32: what the head of a finished model reads of rows, or a layer's mean.

    Rows are those of `answers`: {"text": ...}, {"image": a PIL image}, {"audio": bytes or path}; of
    lists of words, (words, width). Nothing is stored. Raises UserError without rows, and for a
    layer that the model does not have.
    """
    model = predictor.model.eval().to(PartialState().device)
    boundary = _find_boundary(layer_map(model), layer)
    labelled = list(map(with_zeros, rows))
    if not labelled:
        raise UserError("there are no rows", "give one or more")
    has_words = isinstance(labelled[0]["label"], list)
    if has_words and boundary != "head":
        raise UserError(*HEAD_ALONE)
    with _as_user_error(layer):
        layers = FrozenLayers(
            split_model(model, boundary, keeps_all=True),
            above=frozenset(),
            encoder=predictor.encoder,
            batch_size=EmbedConfig.per_device_eval_batch_size,
            quiet=True,
            averages=boundary != "head",
        )
        store = CacheConfig(cache_frozen=False)
        encoded = predictor.encoder.rows(Dataset.from_list(labelled))
        features = compute_features(layers, encoded, store, in_memory=True)
    assert features is not None
    if has_words:
        return features.of_words(FEATURES, encoded["label"][:])
    return features.matrix(FEATURES)


def embed_dataset(
    model: str, source: SourceConfig, options: EmbedConfig, cache: CacheConfig
) -> Embeddings:
    """The vectors of a dataset's rows, through the store of frozen layers.

    `model` is a Hub id, a folder, builtin:NAME or the folder of a run. Raises UserError for what
    does not fit.
    """
    config = ModelConfig(model, options.model_revision, options.trust_remote_code)
    location = locate(config)
    task = find_task(options.task) if options.task else find_checkpoint_task(location)
    read_config(location, task)  # before any data is read
    preparation = load_preparation(config, task, cache)
    data = DataConfig(**vars(source), train_split=options.dataset_split or DataConfig.train_split)
    inputs = load_inputs(data, task, options.dataset_split, preparation)
    checkpoint = load_checkpoint(config, inputs.data)
    if options.pooling == "mean":
        checkpoint = _with_mean(checkpoint)
    boundary = _find_boundary(checkpoint.layers, options.layer)
    _require_vector(checkpoint, boundary)
    job = _make_job(checkpoint, inputs.data, options.per_device_eval_batch_size, cache)
    with _as_user_error(options.layer):
        parts = [_embed_split(name, boundary, job, inputs, cache) for name in inputs.data.splits]
    return Embeddings(
        ids=list(itertools.chain.from_iterable(part.ids for part in parts)),
        labels=_join(part.labels for part in parts),
        files=_join(part.files for part in parts),
        vectors=np.concatenate([part.vectors for part in parts]),
        computed=any(part.computed for part in parts),
        meaning=parts[0].meaning,
    )


def _join(columns: Iterable[list[Any] | None]) -> list[Any] | None:
    """The columns of all splits as one; None if it is empty."""
    joined = list(itertools.chain.from_iterable(column or () for column in columns))
    return joined if any(value is not None for value in joined) else None


def _make_job(checkpoint: Checkpoint, data: Data, batch_size: int, cache: CacheConfig) -> Job:
    """The job of passing the data through a checkpoint; texts are tokenized once."""
    job = make_job(checkpoint, data, TrainingConfig(per_device_eval_batch_size=batch_size))
    takes = checkpoint.takes
    if not isinstance(takes, TextInput) or data.task.labels_words:  # windows are more than the rows
        return job
    encoder = with_stored_tokens(job.encoder, checkpoint.processor, takes.vocabulary, cache)
    return replace(job, encoder=encoder)


def _embed_split(
    name: str, boundary: Boundary, job: Job, inputs: Inputs, cache: CacheConfig
) -> Embeddings:
    """The vectors of a split; its labels are None each where it has none."""
    split = inputs.data.splits[name]
    rows = job.encoder.rows(split)
    features = compute_layer(boundary, job, rows, cache)
    ids = list(split["id"][:])
    labels = inputs.labels[name]
    files = inputs.files[name]
    if inputs.data.task.labels_words:
        ids, labels = _name_words(ids, split["text"][:], labels)
        files = [None] * len(ids)
        vectors = features.of_words(FEATURES, rows["label"][:])
    else:
        vectors = features.matrix(FEATURES)
    meaning = "what the head reads"
    if boundary != "head":
        stage = job.checkpoint.layers.stages[boundary - 1]
        meaning = f"the mean over all positions of what {stage} returns"
    return Embeddings(ids, labels, files, vectors, features.passes > 0, meaning)


def _name_words(
    ids: Sequence[str], texts: Sequence[Sequence[str]], labels: Sequence[Any]
) -> tuple[list[str], list[Any]]:
    """The ids of all words, and their labels. Raises UserError for rows with more or fewer."""
    names: list[str] = []
    tags: list[Any] = []
    for row, words, own in zip(ids, texts, labels, strict=True):
        if own is not None and len(own) != len(words):
            raise UserError(
                f"{row} has {len(words)} words and {len(own)} tags", "fix or remove the row"
            )
        names += [f"{row}/{number}" for number in range(len(words))]
        tags += own or [None] * len(words)
    return names, tags


def require_output(path: Path) -> None:
    """Raise UserError unless a file can be written there, of a known ending."""
    if path.suffix not in WRITERS:
        raise UserError(
            f"--output {str(path)!r} has no known ending", f"end it in {' or '.join(WRITERS)}"
        )
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UserError(
            f"--output {str(path)!r} is no file that can be written",
            "name a file in a folder that exists",
        )


def _find_boundary(layers: LayerMap, layer: str) -> Boundary:
    """The number of stages up to a layer, given by number or name, or "head"."""
    names = layers.stages[1:]
    name = f"layer {int(layer)}" if layer.isdecimal() else layer
    if name not in names:
        raise unknown("layer", layer, names)
    return "head" if name == "head" else names.index(name) + 2


def _with_mean(checkpoint: Checkpoint) -> Checkpoint:
    try:
        return mean_pooled(checkpoint)
    except UnpoolableError as reason:
        raise UserError(
            f"--pooling mean: {reason}", "leave it out, or give the number of a layer: --layer 1"
        ) from reason


def _require_vector(checkpoint: Checkpoint, boundary: Boundary) -> None:
    """Raise UserError where the head reads no vector, or one of weights that nobody trained."""
    last = f"--layer {checkpoint.layers.num_layers}, the last, is the mean of what was pretrained"
    name = checkpoint.provenance.id
    if boundary != "head":
        if checkpoint.task.labels_words:
            raise UserError(*HEAD_ALONE)
        return
    if checkpoint.linear_head is None:
        raise UserError(f"the head of {name!r} is not one linear layer", last)
    untrained = sorted({*checkpoint.new_parameters} - checkpoint.output_layer)
    if untrained:
        raise UserError(
            f"the head of {name!r} reads what passed through new weights: {untrained[0]}", last
        )


@contextmanager
def _as_user_error(layer: str) -> Iterator[None]:
    try:
        yield
    except UnsplittableError as reason:
        raise UserError(f"--layer {layer}: {reason}", "name another layer") from reason


def _write_parquet(embeddings: Embeddings, file: BinaryIO) -> None:
    columns = {name: pa.array(values) for name, values in embeddings.columns.items()}
    vectors = embeddings.vectors
    columns["vector"] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    pyarrow.parquet.write_table(pa.table(columns), file)


def _write_npz(embeddings: Embeddings, file: BinaryIO) -> None:
    """Arrays of text and the vectors; several labels of a row are separated by |."""
    arrays: dict[str, Any] = {
        name: np.array(list(map(_in_one_cell, values)))
        for name, values in embeddings.columns.items()
    }
    np.savez(file, **arrays, vector=embeddings.vectors)


def _in_one_cell(label: Any) -> str:
    if isinstance(label, list):
        return "|".join(map(str, label))
    return "" if label is None else str(label)


WRITERS: dict[str, Callable[[Embeddings, BinaryIO], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
}
