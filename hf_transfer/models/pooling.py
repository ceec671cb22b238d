"""What the head of a text encoder reads: the mean over positions in place of one of them.

With few labels the mean is worth more than the vector of one token that no task has trained yet.
The result is a plain checkpoint that needs no code of ours: some classes of transformers have an
option for the mean; other encoders, like BERT, get one more layer whose attention is uniform
(mean_pooling_layer.py), so that the head finds the mean at the position that it reads.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import filterfalse
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hf_transfer.errors import one_line
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import read_logits
from hf_transfer.models.mean_pooling_layer import (
    MEAN_OPTIONS,
    NEAR_LINEAR,
    fill_layer,
    write_constant,
)

Tensors = dict[str, torch.Tensor]

LENGTHS = (13, 8)  # tokens of the two rows of the test batch; the second row is padded
MIN_CORRELATION = 0.999  # of two vectors that count as equal up to offset and factor

# Error of a mean, as a share of the distance of the means of the two rows. Biases that the layers
# share make a larger one.
MAX_ERROR = 0.02

# In standard deviations: an activation may bend larger values, so they are not compared behind it.
MAX_DEVIATIONS = 3.0


class UnpoolableError(Exception):
    """A checkpoint whose head cannot be made to read the mean; the message is the reason."""


# Checkpoint -> its mean-pooled one, or the reason why there is none.
_mean_pooled: WeakKeyDictionary[Checkpoint, Checkpoint | str] = WeakKeyDictionary()


def mean_pooled(checkpoint: Checkpoint) -> Checkpoint:
    """The result of with_mean_pooling, built at the first call for a Checkpoint.

    All callers get the same object with the same weights: whoever trains it trains a copy.
    A refusal is remembered, too. Raises UnpoolableError as with_mean_pooling does.
    """
    if checkpoint not in _mean_pooled:
        try:
            _mean_pooled[checkpoint] = with_mean_pooling(checkpoint)
        except UnpoolableError as reason:
            _mean_pooled[checkpoint] = str(reason)
    found = _mean_pooled[checkpoint]
    if isinstance(found, str):
        raise UnpoolableError(found)
    return found


def with_mean_pooling(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a head that reads the mean over all tokens except padding.

    The model is a plain one of the same class. Where the class has an option for the mean, the
    option is set. Elsewhere a layer with uniform attention is added, and a dense layer between it
    and the output layer becomes a multiple of the identity: these parameters are `fixed`, what the
    dense layer had learned is dropped, and the head is the output layer, which reads the mean
    standardised per row. Nothing depends on the name of the architecture: a small random batch must
    show that the head reads the mean.

    The model is a new one with copies of all weights. The given model and the state of the random
    number generators stay as they are. Raises UnpoolableError where there is no such model.
    """
    model = checkpoint.model
    output = _require_encoder_with_new_head(checkpoint)
    with _eval_mode(model), _refusing(model):
        check = _make_check(model)
        for option in MEAN_OPTIONS:
            if hasattr(model.config, option):
                return replace(checkpoint, model=_with_option(model, option, check))
        pooled, added, dense = _with_mean_layer(model, output, check)
    fixed = {*added, *dense}
    replaced = set(dense) - set(checkpoint.new_parameters)
    result = replace(
        checkpoint,
        model=pooled,
        head=tuple(filterfalse(fixed.__contains__, checkpoint.head)),
        new_parameters=tuple(filterfalse(fixed.__contains__, checkpoint.new_parameters)),
        dropped_parameters=tuple(sorted({*checkpoint.dropped_parameters, *replaced})),
        fixed=tuple(filter(fixed.__contains__, dict(pooled.named_parameters()))),
    )
    # A final norm would run behind the added layer now, in place of the last layer of before.
    if result.layers.stages != checkpoint.layers.stages:
        raise UnpoolableError(
            f"{type(model).__name__} has a norm behind its layers, which would see another vector"
        )
    return result


def _require_encoder_with_new_head(checkpoint: Checkpoint) -> str:
    """The path of the output layer; raises UnpoolableError for what needs no test."""
    model = checkpoint.model
    name = type(model).__name__
    if model.main_input_name != "input_ids":
        raise UnpoolableError(f"{name} reads {model.main_input_name}, not tokens")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnpoolableError(f"{name} has a decoder, whose positions are no summary of the text")
    if checkpoint.fixed:
        raise UnpoolableError("its head reads the mean already")
    if not checkpoint.new_parameters:
        raise UnpoolableError("the head was kept: it reads what it was trained on")
    if checkpoint.linear_head is None:
        raise UnpoolableError(f"the output layer of {name} is not one linear layer")
    return checkpoint.linear_head


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode without gradients; all modes are restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _refusing(model: nn.Module) -> Iterator[None]:
    """A context in which errors of an architecture become UnpoolableError.

    It may not be possible to build it with another layer, or it may refuse the batch.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # tells nothing about the architecture
        raise
    except (ValueError, TypeError, LookupError, RuntimeError, AssertionError) as error:
        raise UnpoolableError(
            f"{type(model).__name__} does not support mean pooling: {one_line(error)}"
        ) from error


# --- the test: does a layer read the mean? ---


@dataclass(frozen=True)
class _Trace:
    """What a forward pass computed."""

    inputs: Tensors  # what each linear layer read, by path, in the order of the calls
    hidden_states: torch.Tensor  # of the base model: (rows, positions, width)
    logits: torch.Tensor


@dataclass(frozen=True)
class _MeanCheck:
    """A batch of two rows, the second padded, and what a head that reads the mean must read."""

    batch: Tensors
    mean: torch.Tensor  # (rows, width)
    before: _Trace  # of the model as it was given

    def why_not_mean(self, vectors: torch.Tensor) -> str | None:
        """Why vectors are not the mean up to an offset and factor of each row; None if they are.

        Correlation alone proves little: all vectors of a network correlate, since some of their
        values are always large. So the error is compared with the distance of the two means.
        """
        if vectors.shape != self.mean.shape:
            return "more than one vector per text"
        actual = _standardised(vectors)
        expected = _standardised(self.mean)
        correlation = float((actual * expected).mean(1).min())
        error = float((actual - expected).norm(dim=1).max() / (expected[0] - expected[1]).norm())
        if correlation > MIN_CORRELATION and error < MAX_ERROR:
            return None
        return (
            f"a vector that correlates with the mean by {correlation:.4f}, with {error:.0%} error"
        )


def _make_check(model: Any) -> _MeanCheck:
    """A check on a random batch; raises UnpoolableError if the head reads the mean already."""
    batch = _random_batch(model)
    trace = _trace(model, batch)
    if trace.hidden_states.ndim != 3 or trace.hidden_states.shape[1] != LENGTHS[0]:
        raise UnpoolableError(f"the base model of {type(model).__name__} has no vector per token")
    mask = batch["attention_mask"].unsqueeze(-1)
    check = _MeanCheck(batch, (trace.hidden_states * mask).sum(1) / mask.sum(1), trace)
    if not check.why_not_mean(trace.inputs[_first_head_layer(model, trace)]):
        raise UnpoolableError("its head reads the mean already")
    return check


def _random_batch(model: Any) -> Tensors:
    """Two rows, the second padded, without special tokens: one might end the text, or be masked."""
    config = model.config.get_text_config()
    size = getattr(config, "vocab_size", None)
    if not size:
        raise UnpoolableError(f"{type(model).__name__} has no vocabulary")
    special = {value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    ordinary = torch.tensor(sorted(set(range(min(size, 1000))) - special))
    shape = (len(LENGTHS), LENGTHS[0])
    chosen = torch.randint(len(ordinary), shape, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(LENGTHS[0]) < torch.tensor(LENGTHS).unsqueeze(1)
    ids = torch.where(mask, ordinary[chosen], getattr(config, "pad_token_id", None) or 0)
    return {"input_ids": ids.to(model.device), "attention_mask": mask.long().to(model.device)}


def _trace(model: Any, batch: Mapping[str, torch.Tensor]) -> _Trace:
    inputs: Tensors = {}
    states: list[Any] = []

    def record(path: str, _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        inputs[path] = args[0].detach()

    handles = [model.base_model.register_forward_hook(lambda _, __, out: states.append(out[0]))]
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(partial(record, path)))
    try:
        logits = read_logits(model(**batch))
    finally:
        for handle in handles:
            handle.remove()
    return _Trace(inputs, states[-1], logits)


def _first_head_layer(model: Any, trace: _Trace) -> str:
    """The first linear layer that ran outside the base model, or else the last one of all."""
    base = f"{model.base_model_prefix}."
    outside = (path for path in trace.inputs if not path.startswith(base))
    return next(outside, next(reversed(trace.inputs)))


def _require_mean(model: Any, layer: str, check: _MeanCheck) -> None:
    """Raise UnpoolableError unless a layer reads the mean, padded or not, and logits are finite."""
    trace = _trace(model, check.batch)
    second_row = {name: tensor[-1:, : LENGTHS[-1]] for name, tensor in check.batch.items()}
    alone = _trace(model, second_row)
    reason = check.why_not_mean(trace.inputs[layer])
    if reason:
        raise UnpoolableError(f"{layer} would read {reason}")
    if not torch.allclose(trace.inputs[layer][-1:], alone.inputs[layer], rtol=1e-3, atol=1e-3):
        raise UnpoolableError(f"{layer} would read padding too")
    if not trace.logits.isfinite().all():
        raise UnpoolableError("its logits would not be finite")


def _standardised(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., width) with mean 0 and standard deviation 1 each."""
    vectors = vectors.double()
    return (vectors - vectors.mean(-1, keepdim=True)) / vectors.std(-1, keepdim=True, correction=0)


# --- the pooled model ---


def _with_option(model: Any, option: str, check: _MeanCheck) -> Any:
    """The model built with an option of its class; raises UnpoolableError if it is not the mean."""
    config = copy.deepcopy(model.config)
    setattr(config, option, MEAN_OPTIONS[option])
    pooled, missing = _rebuild(model, config)
    if missing:
        raise UnpoolableError(
            f"with {option}={MEAN_OPTIONS[option]} it has parameters of its own: {missing[0]}"
        )
    with _eval_mode(pooled):
        _require_mean(pooled, _first_head_layer(pooled, _trace(pooled, check.batch)), check)
    return pooled


def _with_mean_layer(
    model: Any, output: str, check: _MeanCheck
) -> tuple[Any, list[str], list[str]]:
    """The model with one more layer, the mean; names of its parameters and of a dense behind it."""
    if check.before.inputs[output].ndim != 2:
        raise UnpoolableError(f"{output} reads every token")
    config = copy.deepcopy(model.config)
    number = getattr(config, "num_hidden_layers", 0)  # of the new layer, counted from 0
    config.num_hidden_layers = number + 1
    pooled, added = _rebuild(model, config)
    if not added:
        raise UnpoolableError(f"the layers of {type(model).__name__} share their weights")
    if any(str(number) not in name.split(".") for name in added):
        raise UnpoolableError(
            f"a layer more of {type(model).__name__} changes more than its layers"
        )
    fill_layer(pooled, added)
    with _eval_mode(pooled):
        # What runs behind the new layer must be the output layer, at most a dense layer before it.
        order = list(_trace(pooled, check.batch).inputs)
        last = max(place for place, path in enumerate(order) if f"{path}.weight" in added)
        behind = order[last + 1 : order.index(output) + 1]
        if len(behind) > 2:
            raise UnpoolableError(
                f"{len(behind) - 1} layers lie between what is pooled and the output layer"
            )
        _require_mean(pooled, behind[0], check)
        if behind[0] == output:
            return pooled, added, []
        _make_near_linear(pooled, behind[0], output, check)
    dense = pooled.get_submodule(behind[0])
    return pooled, added, list(dict(dense.named_parameters(behind[0])))


def _rebuild(model: Any, config: Any) -> tuple[Any, list[str]]:
    """A model from another config with copies of all weights; names of the parameters they lack."""
    with torch.random.fork_rng(devices=[]):
        other = type(model)._from_config(config, dtype=model.dtype)
    other.to(model.device).train(model.training)
    weights = model.state_dict()
    for name, tensor in other.state_dict().items():
        if weights.get(name, tensor).shape != tensor.shape:
            raise UnpoolableError(f"{name} would have another shape")
    report = other.load_state_dict(weights, strict=False)
    if report.unexpected_keys:
        raise UnpoolableError(f"there is no place for {report.unexpected_keys[0]}")
    return other, report.missing_keys


def _make_near_linear(model: Any, dense: str, output: str, check: _MeanCheck) -> None:
    """Set a dense layer to the first pair of NEAR_LINEAR that fits the activation behind it."""
    layer = model.get_submodule(dense)
    for factor, offset in NEAR_LINEAR:
        write_constant(dense, layer.weight, factor)
        if layer.bias is not None:
            write_constant(dense, layer.bias, offset)
        inputs = _trace(model, check.batch).inputs
        if _is_near_linear(inputs[dense], inputs[output]):
            return
    raise UnpoolableError(f"what lies between {dense} and {output} does not let the mean through")


def _is_near_linear(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether the usual values of each row come out unchanged, up to offset and factor."""
    usual = _standardised(before).abs() <= MAX_DEVIATIONS
    for row, result, compared in zip(before, after, usual, strict=True):
        pair = torch.stack([row[compared], result[compared]]).double()
        if not float(torch.corrcoef(pair)[0, 1]) > MIN_CORRELATION:  # also for NaN
            return False
    return True
