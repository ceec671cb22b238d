"""Feature extraction: a vector for each input, of the layer asked for, from the store."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.data import DataConfig, SourceConfig
from hf_transfer.config.embed import EmbedConfig
from hf_transfer.config.model import ModelConfig
from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.data.inputs import Inputs, load_inputs
from hf_transfer.data.tokens import with_stored_tokens
from hf_transfer.errors import UserError, unknown
from hf_transfer.frozen.features import compute_features
from hf_transfer.frozen.forward_pass import FrozenLayers
from hf_transfer.frozen.phase import compute_layer
from hf_transfer.frozen.split import FEATURES, Boundary, UnsplittableError, split_model
from hf_transfer.job import Job, make_job
from hf_transfer.models.checkpoint import Checkpoint, load_checkpoint, load_preparation
from hf_transfer.models.layers import LayerMap, layer_map
from hf_transfer.models.locate import find_checkpoint_task, locate
from hf_transfer.models.pooling import UnpoolableError, mean_pooled
from hf_transfer.models.predictor import Predictor
from hf_transfer.sealed import temporary_path
from hf_transfer.tasks import find_task


@dataclass(frozen=True)
class Embeddings:
    """A vector for each input, or for each word where words have labels.

    `ids` (n,) are split/row, or split/row/word; `labels` (n,) as stored, classes by name, None
    where a row has none; `vectors` (n, width) float32. `computed` is False where all were in the
    store.
    """

    ids: list[str]
    labels: list[Any] | None
    vectors: np.ndarray
    computed: bool

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

    Rows are those of `answers`: {"text": ...}, {"image": a PIL image}, {"audio": bytes or path}.
    Nothing is stored. Raises UserError for a layer that the model does not have.
    """
    model = predictor.model.eval()
    boundary = _find_boundary(layer_map(model), layer)
    labelled = Dataset.from_list([{**row, "label": 0} for row in rows])
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
        features = compute_features(layers, predictor.encoder.rows(labelled), store, in_memory=True)
    assert features is not None
    return features.matrix(FEATURES)


def embed_dataset(
    model: str, source: SourceConfig, options: EmbedConfig, cache: CacheConfig
) -> Embeddings:
    """The vectors of a dataset's rows, through the store of frozen layers.

    `model` is a Hub id, a folder, builtin:NAME or the folder of a run. Raises UserError for what
    does not fit.
    """
    config = ModelConfig(model, options.model_revision, options.trust_remote_code)
    task = find_task(options.task) if options.task else find_checkpoint_task(locate(config))
    preparation = load_preparation(config, task, cache)
    data = DataConfig(**vars(source), train_split=options.dataset_split or DataConfig.train_split)
    inputs = load_inputs(data, task, options.dataset_split, preparation)
    checkpoint = load_checkpoint(config, inputs.data)
    if options.pooling == "mean":
        checkpoint = _with_mean(checkpoint)
    boundary = _find_boundary(checkpoint.layers, options.layer)
    _require_vector(checkpoint, boundary)
    batch_size = options.per_device_eval_batch_size
    job = make_job(checkpoint, inputs.data, TrainingConfig(per_device_eval_batch_size=batch_size))
    if task.modality == "text" and not task.labels_words:
        tokens = with_stored_tokens(
            job.encoder, checkpoint.processor, checkpoint.takes.vocabulary, cache
        )
        job = replace(job, encoder=tokens)
    with _as_user_error(options.layer):
        parts = [_embed_split(name, boundary, job, inputs, cache) for name in inputs.data.splits]
    labels = [part.labels or [None] * len(part.ids) for part in parts]
    return Embeddings(
        ids=list(itertools.chain.from_iterable(part.ids for part in parts)),
        labels=[*itertools.chain.from_iterable(labels)] if any(p.labels for p in parts) else None,
        vectors=np.concatenate([part.vectors for part in parts]),
        computed=any(part.computed for part in parts),
    )


def _embed_split(
    name: str, boundary: Boundary, job: Job, inputs: Inputs, cache: CacheConfig
) -> Embeddings:
    split = inputs.data.splits[name]
    rows = job.encoder.rows(split)
    features = compute_layer(boundary, job, rows, cache)
    ids = list(split["id"][:])
    labels = inputs.labels[name]
    if not inputs.data.task.labels_words:
        return Embeddings(ids, labels, features.matrix(FEATURES), features.passes > 0)
    counts = list(map(len, split["text"]))
    for row, count, own in zip(ids, counts, labels or (), strict=False):
        if own is not None and len(own) != count:
            raise UserError(f"{row} has {count} words and {len(own)} tags", "fix or remove the row")
    return Embeddings(
        ids=[
            f"{row}/{word}" for row, count in zip(ids, counts, strict=True) for word in range(count)
        ],
        labels=labels
        and [tag for own, n in zip(labels, counts, strict=True) for tag in own or [None] * n],
        vectors=features.of_words(FEATURES, rows["label"][:]),
        computed=features.passes > 0,
    )


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
            raise UserError("words have vectors at the head alone", "leave out --layer")
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
    columns: dict[str, Any] = {"id": pa.array(embeddings.ids)}
    if embeddings.labels is not None:
        columns["label"] = pa.array(embeddings.labels)
    vectors = embeddings.vectors
    columns["vector"] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    pyarrow.parquet.write_table(pa.table(columns), file)


def _write_npz(embeddings: Embeddings, file: BinaryIO) -> None:
    """Arrays id, vector and, where there are any, label: text; several of a row between |."""
    arrays: dict[str, Any] = {"id": np.array(embeddings.ids), "vector": embeddings.vectors}
    if embeddings.labels is not None:
        arrays["label"] = np.array(list(map(_in_one_cell, embeddings.labels)))
    np.savez(file, **arrays)


def _in_one_cell(label: Any) -> str:
    if isinstance(label, list):
        return "|".join(map(str, label))
    return "" if label is None else str(label)


WRITERS: dict[str, Callable[[Embeddings, BinaryIO], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
}
