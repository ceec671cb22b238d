"""What the head reads: the mean over positions in place of one of them, inside a plain checkpoint.

With few labels the mean is worth more than the vector of one token that no task has trained yet. It takes no code of
ours to have it: some classes of transformers have an option; in encoders like BERT one more layer, made by hand, whose
attention is uniform puts the mean where the head reads.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hf_transfer.errors import one_line
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.head import read_logits
from hf_transfer.models.mean_pooling_layer import BENDS, OPTIONS, fill_layer, write

Tensors = dict[str, torch.Tensor]

LENGTHS = (13, 8)  # tokens of the two rows of the proof; the second is padded
ALIKE = 0.999  # the least correlation of two vectors that count as the same up to offset and factor
LARGEST_ERROR = 0.02  # of a mean, as a share of the distance of two means; a bias shared by the layers makes more
USUAL = 3.0  # deviations: a value beyond is bent, which is no matter of being wrong


class UnpoolableError(Exception):
    """A checkpoint whose head cannot be made to read the mean; the message says why."""


def with_mean_pooling(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint whose head reads the mean over all tokens but padding, in a plain model of the same class.

    Where the class has an option for it, the option is set. Elsewhere a layer is added whose attention is uniform, and
    a dense layer between it and the output layer becomes a multiple of the identity: these parameters are `fixed`, what
    the dense layer had learned is dropped, and the head is the output layer, which reads the mean standardised per row.
    The way is not taken from the name of the architecture: a small random batch must show that the head reads the mean.

    The model is a new one with copies of all weights, the given one stays as it is, and so does the state of random
    numbers. Raises UnpoolableError where there is no such model.
    """
    model = checkpoint.model
    output = _require_encoder_with_new_head(checkpoint)
    with _evaluating(model), _saying_why(model):
        probe = _probe(model)
        option = next((name for name in OPTIONS if hasattr(model.config, name)), None)
        if option is not None:
            return replace(checkpoint, model=_with_option(model, option, probe))
        pooled, added, dense = _with_mean_layer(model, output, probe)
    fixed = {*added, *dense}
    dropped = {
        *checkpoint.dropped_parameters,
        *(name for name in dense if name not in checkpoint.new_parameters),
    }
    found = replace(
        checkpoint,
        model=pooled,
        head=tuple(name for name in checkpoint.head if name not in fixed),
        new_parameters=tuple(name for name in checkpoint.new_parameters if name not in fixed),
        dropped_parameters=tuple(sorted(dropped)),
        fixed=tuple(name for name, _ in pooled.named_parameters() if name in fixed),
    )
    if found.layers.stages != checkpoint.layers.stages:
        raise UnpoolableError(
            f"{type(model).__name__} has a norm behind its layers, which would see another vector"
        )
    return found


def _require_encoder_with_new_head(checkpoint: Checkpoint) -> str:
    """The path of the output layer; raises UnpoolableError for what need not be tried."""
    model, name = checkpoint.model, type(checkpoint.model).__name__
    if model.main_input_name != "input_ids":
        raise UnpoolableError(f"{name} reads {model.main_input_name}, not tokens")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnpoolableError(f"{name} has a decoder, whose positions are no summary of the text")
    if checkpoint.fixed:
        raise UnpoolableError("its head reads the mean already")
    if not checkpoint.new_parameters:
        raise UnpoolableError("the head was kept: it reads what it was trained on")
    output = checkpoint.linear_head
    if output is None:
        raise UnpoolableError(f"the output layer of {name} is not one linear layer")
    return output


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in eval mode and has no gradient; then all its modules are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _saying_why(model: nn.Module) -> Iterator[None]:
    """An architecture that cannot be built with another layer, or does not take the batch, raises UnpoolableError.

    A full memory says nothing of the architecture: that error stays what it is.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, LookupError, RuntimeError, AssertionError) as error:
        raise UnpoolableError(
            f"{type(model).__name__} does not go with it: {one_line(error)}"
        ) from error


@dataclass(frozen=True)
class _Seen:
    """What a forward pass showed: what each linear layer read in the order of their calls, and what came out."""

    reads: Tensors
    states: torch.Tensor  # of the base model: (rows, positions, width)
    logits: torch.Tensor


@dataclass(frozen=True)
class _Probe:
    """A batch of two rows of which the second is padded, and what a head that reads the mean reads of it."""

    inputs: Tensors
    mean: torch.Tensor  # (rows, width)
    before: _Seen  # in the model as it was given

    @property
    def last_alone(self) -> Tensors:
        """The second row without its padding."""
        return {name: tensor[-1:, : LENGTHS[-1]] for name, tensor in self.inputs.items()}

    def why_not_mean(self, read: torch.Tensor) -> str | None:
        """Why what is read is not the mean, up to offset and factor of each row; None if it is.

        Vectors of one network are alike, for some of their values are always large: the error is measured by how far
        the two rows are apart.
        """
        if read.shape != self.mean.shape:
            return "more than one vector a text"
        found, expected = _standardised(read), _standardised(self.mean)
        likeness = float((found * expected).mean(1).min())
        error = float((found - expected).norm(dim=1).max() / (expected[0] - expected[1]).norm())
        alike = likeness > ALIKE and error < LARGEST_ERROR
        return (
            None
            if alike
            else f"what correlates with the mean to {likeness:.4f}, and is off by {error:.0%}"
        )


def _probe(model: Any) -> _Probe:
    """A random batch; raises UnpoolableError if the head reads the mean as the model is."""
    inputs = _random_batch(model)
    seen = _look(model, inputs)
    if seen.states.ndim != 3 or seen.states.shape[1] != LENGTHS[0]:
        raise UnpoolableError(f"the base model of {type(model).__name__} gives no vector a token")
    mask = inputs["attention_mask"].unsqueeze(-1)
    mean = (seen.states * mask).sum(1) / mask.sum(1)
    probe = _Probe(inputs, mean, seen)
    if not probe.why_not_mean(seen.reads[_first_of_head(model, seen)]):
        raise UnpoolableError("its head reads the mean already")
    return probe


def _random_batch(model: Any) -> Tensors:
    """Two rows of ordinary tokens, the second padded: a special token among them might end a text or hide a place."""
    config = model.config.get_text_config()
    size = getattr(config, "vocab_size", None)
    if not size:
        raise UnpoolableError(f"{type(model).__name__} has no vocabulary")
    special = {value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    ordinary = torch.tensor([number for number in range(min(size, 1000)) if number not in special])
    chosen = torch.randint(
        len(ordinary), (len(LENGTHS), LENGTHS[0]), generator=torch.Generator().manual_seed(0)
    )
    mask = (torch.arange(LENGTHS[0]) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    padding = getattr(config, "pad_token_id", None) or 0
    ids = torch.where(mask.bool(), ordinary[chosen], padding)
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def _look(model: Any, inputs: Mapping[str, torch.Tensor]) -> _Seen:
    """What happens within a model that is given a batch."""
    reads: Tensors = {}
    states: list[Any] = []
    handles = [model.base_model.register_forward_hook(lambda _, __, given: states.append(given[0]))]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(_noting(reads, name)))
    try:
        logits = read_logits(model(**inputs))
    finally:
        for handle in handles:
            handle.remove()
    return _Seen(reads, states[-1], logits)


def _noting(reads: Tensors, name: str) -> Any:
    def note(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        reads[name] = given[0].detach()

    return note


def _first_of_head(model: Any, seen: _Seen) -> str:
    outside = (name for name in seen.reads if not name.startswith(f"{model.base_model_prefix}."))
    return next(outside, next(reversed(seen.reads)))


def _with_option(model: Any, option: str, probe: _Probe) -> Any:
    """The model built with an option of its class; raises UnpoolableError if that is not the mean."""
    config = copy.deepcopy(model.config)
    setattr(config, option, OPTIONS[option])
    pooled, missing = _rebuilt(model, config)
    if missing:
        raise UnpoolableError(
            f"with {option}={OPTIONS[option]} it has parameters of its own: {missing[0]}"
        )
    with _evaluating(pooled):
        _require_mean(pooled, _first_of_head(pooled, _look(pooled, probe.inputs)), probe)
    return pooled


def _with_mean_layer(model: Any, output: str, probe: _Probe) -> tuple[Any, list[str], list[str]]:
    """The model with one more layer, which computes the mean; the parameters of this and of the dense layer behind."""
    if probe.before.reads[output].ndim != 2:
        raise UnpoolableError(f"{output} reads every token")
    config = copy.deepcopy(model.config)
    layers = getattr(config, "num_hidden_layers", 0)
    config.num_hidden_layers = layers + 1
    pooled, added = _rebuilt(model, config)
    if not added:
        raise UnpoolableError(f"the layers of {type(model).__name__} share their weights")
    if any(str(layers) not in name.split(".") for name in added):
        raise UnpoolableError(
            f"a layer more of {type(model).__name__} changes more than its layers"
        )
    fill_layer(pooled, added)
    with _evaluating(pooled):
        order = list(_look(pooled, probe.inputs).reads)
        begin = 1 + max(number for number, name in enumerate(order) if f"{name}.weight" in added)
        behind = order[begin : order.index(output) + 1]
        if len(behind) > 2:
            raise UnpoolableError(
                f"{len(behind) - 1} layers lie between what is pooled and the output layer"
            )
        _require_mean(pooled, behind[0], probe)
        if behind[0] == output:
            return pooled, added, []
        _straighten(pooled, behind[0], output, probe)
    return (
        pooled,
        added,
        [f"{behind[0]}.{name}" for name, _ in pooled.get_submodule(behind[0]).named_parameters()],
    )


def _rebuilt(model: Any, config: Any) -> tuple[Any, list[str]]:
    """A model of the same class from another config with copies of all weights, and the names of those it lacks."""
    with torch.random.fork_rng(devices=[]):
        other = type(model)._from_config(config, dtype=model.dtype)
    other.to(model.device).train(model.training)
    weights = model.state_dict()
    changed = [
        name
        for name, new in other.state_dict().items()
        if weights.get(name, new).shape != new.shape
    ]
    if changed:
        raise UnpoolableError(f"{changed[0]} would have another shape")
    report = other.load_state_dict(weights, strict=False)
    if report.unexpected_keys:
        raise UnpoolableError(f"there is no place for {report.unexpected_keys[0]}")
    return other, report.missing_keys


def _straighten(model: Any, dense: str, output: str, probe: _Probe) -> None:
    """Make a dense layer the first multiple of the identity that the activation behind it leaves nearly straight."""
    layer = model.get_submodule(dense)
    for factor, offset in BENDS:
        write(dense, layer.weight, factor)
        if layer.bias is not None:
            write(dense, layer.bias, offset)
        seen = _look(model, probe.inputs)
        if _is_straight(seen.reads[dense], seen.reads[output]):
            return
    raise UnpoolableError(f"what lies between {dense} and {output} does not let the mean through")


def _is_straight(given: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether the usual values of what is given come out as they were, up to offset and factor."""
    usual = _standardised(given).abs() <= USUAL
    pairs = (
        torch.stack([a[kept], b[kept]]).double()
        for a, b, kept in zip(given, got, usual, strict=True)
    )
    return all(float(torch.corrcoef(pair)[0, 1]) > ALIKE for pair in pairs)


def _require_mean(model: Any, layer: str, probe: _Probe) -> None:
    """Raise UnpoolableError unless a layer reads the mean, padding or not, and the model has an answer."""
    seen, alone = _look(model, probe.inputs), _look(model, probe.last_alone)
    reason = probe.why_not_mean(seen.reads[layer])
    if reason:
        raise UnpoolableError(f"{layer} would read {reason}")
    if not torch.allclose(seen.reads[layer][-1:], alone.reads[layer], rtol=1e-3, atol=1e-3):
        raise UnpoolableError(f"{layer} would read padding too")
    if not seen.logits.isfinite().all():
        raise UnpoolableError("its logits would not be finite")


def _standardised(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., width) with a mean of zero and a deviation of one each."""
    vectors = vectors.double()
    return (vectors - vectors.mean(-1, keepdim=True)) / vectors.std(-1, keepdim=True, correction=0)
