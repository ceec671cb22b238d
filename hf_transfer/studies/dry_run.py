"""What a run would do, as text, before anything is learned or written."""

import copy
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from datasets import Dataset

from hf_transfer.config import RunConfig, Strategy, TrainingConfig, TransferConfig
from hf_transfer.data.augmentation import fit_augmentation, require_augmentation
from hf_transfer.data.encode import Encoder, make_encoder
from hf_transfer.data.sources import Data, load_data
from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import require_metrics
from hf_transfer.frozen.features import SAMPLE, FrozenPart, estimate
from hf_transfer.frozen.split import UnsplittableError, split_model
from hf_transfer.models.adapters import (
    adapter_rates,
    require_loadable_method,
    require_method,
    wrap_with_adapter,
)
from hf_transfer.models.checkpoint import Checkpoint, load_checkpoint
from hf_transfer.models.flops import stage_flops
from hf_transfer.models.head import parameter_count
from hf_transfer.models.layers import LayerMap
from hf_transfer.models.pooling import UnpoolableError, with_mean_pooling
from hf_transfer.store.activations import cache_folder, room_for, show_bytes
from hf_transfer.strategies.auto import CANDIDATES, FIRST
from hf_transfer.strategies.cost import computed_below, phase_costs
from hf_transfer.strategies.make_plan import make_plan
from hf_transfer.strategies.phases import STRATEGIES
from hf_transfer.strategies.plan import Phase, Plan, in_steps, learning_rates
from hf_transfer.studies.choose import pool_as_asked
from hf_transfer.tasks import Task
from hf_transfer.training.engine import require_runnable
from hf_transfer.training.epochs import Pace, in_passes, pace

MOST_TOKENIZED = 1000  # texts of a split whose lengths stand for those of all

COLUMNS = {"phase": "<", "how": "<", "epochs": ">", "steps": ">", "batch": ">", "learns": ">"}
COLUMNS |= {"computed once": "<", "cache": ">", "x full": ">"}
LEGEND = (
    "computed once: what is frozen, all below the stage that is named; the cache keeps what it gives",
    "x full: operations of training beside those of --strategy full; evaluations are not counted",
)


@dataclass(frozen=True)
class Setting:
    """What plans are made for: a checkpoint, data, some encoded rows of each split, and the operations by stage.

    `pooling` says in words what the head reads.
    """

    checkpoint: Checkpoint
    pooling: str
    layers: LayerMap
    data: Data
    training: TrainingConfig
    encoder: Encoder
    samples: Mapping[str, Dataset]
    flops: tuple[float, ...]
    measured: dict[tuple[Any, ...], dict[str, int] | str] = field(default_factory=dict)

    @cached_property
    def labels(self) -> list[Any]:
        """Those of the training rows."""
        return list(self.data.train["label"][:])

    def plan(self, config: TransferConfig, strategy: str) -> Plan:
        """The plan of a strategy; raises UserError where a run of it would before anything is learned."""
        config = replace(config, strategy=cast(Strategy, strategy))
        plan = make_plan(config, self.checkpoint, self.data, self.training)
        require_runnable(plan, self.checkpoint, self.data, self.training)
        return plan

    def bytes_of(self, boundary: int, plan: Plan, solved: bool) -> dict[str, int] | str:
        """Bytes of a view of each split at a boundary, or why the network cannot be split there."""
        key = (boundary, solved, plan.cache.dtype)
        if key not in self.measured:
            try:
                self.measured[key] = self._estimate(boundary, plan, solved)
            except UnsplittableError as reason:
                self.measured[key] = str(reason)
        return self.measured[key]

    def _estimate(self, boundary: int, plan: Plan, solved: bool) -> dict[str, int]:
        part = FrozenPart(
            split_model(self.checkpoint.model, "head" if solved else boundary),
            self.checkpoint.model,
            str(boundary),
            frozenset(),
            self.encoder,
            batch_size=SAMPLE,
            quiet=True,
            bfloat16=plan.cache.dtype == "bfloat16",
        )
        return {
            name: estimate(part, rows, len(self.data.splits[name]))
            for name, rows in self.samples.items()
        }


@dataclass(frozen=True)
class Forecast:
    """What a phase would do; `rates` by position of a stage, `notes` on what goes another way than one would think."""

    phase: Phase
    pace: Pace | None
    trainable: int
    rates: Mapping[int, float]
    boundary: int
    cached: str
    notes: tuple[str, ...] = ()


def preview(config: RunConfig, task: Task) -> str:
    """The plan of a run and what it costs; for `--strategy auto` every strategy and its cost.

    Loads checkpoint and data, runs the network forward on a few rows, and writes nothing. Raises UserError as a run
    does.
    """
    setting = _set_up(config, task)
    lines = _describe(config, setting)
    if config.transfer.strategy == "auto":
        lines += _strategies(config.transfer, setting)
    else:
        lines += _phases(config.transfer, setting)
    return "\n".join(lines)


def _set_up(config: RunConfig, task: Task) -> Setting:
    training = config.training
    _require_known_names(config, task)
    data = load_data(config.data, task, training.seed)
    require_metrics(config.evaluation.metrics, data.problem_type)
    checkpoint = load_checkpoint(
        **config.model.source,
        task=task,
        labels=data.labels,
        seed=training.seed,
        problem_type=data.problem_type,
    )
    checkpoint, pooling = _pool(config.transfer, checkpoint)
    model = checkpoint.model.eval().to(training.device)
    encoder = make_encoder(task, checkpoint.processor, model.config, config.data.max_length)
    learned = ("train", "validation")
    samples = {
        name: _some_rows(rows, encoder) for name, rows in data.splits.items() if name in learned
    }
    fit_augmentation(training.augmentation, encoder, samples["train"])
    some = samples["train"].select(_spread(SAMPLE, len(samples["train"])))
    inputs = {
        name: tensor.to(training.device) for name, tensor in encoder.collate(list(some)).items()
    }
    inputs.pop("labels")
    flops = stage_flops(model, inputs, checkpoint.layers)
    return Setting(checkpoint, pooling, checkpoint.layers, data, training, encoder, samples, flops)


def _require_known_names(config: RunConfig, task: Task) -> None:
    """Raise UserError for an augmentation, a PEFT method or a metric that a run would not take, before all loading."""
    require_augmentation(config.training.augmentation, task)
    require_method(config.transfer.peft_method, config.transfer.lora_rank)
    if config.transfer.keep_adapter:
        require_loadable_method(config.transfer.peft_method, config.transfer.lora_rank)
    require_metrics(config.evaluation.metrics, config.data.problem_type)


def _pool(config: TransferConfig, checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """The checkpoint with the pooling that was asked for, and what its head reads, in words."""
    if config.pooling != "auto" or checkpoint.reads_mean:
        checkpoint, pooling, _ = pool_as_asked(config, checkpoint)
        return checkpoint, "the mean over all tokens" if pooling == "mean" else "its own"
    if checkpoint.task.has_images:
        return checkpoint, "its own"
    reason = _why_not_pooled(config, checkpoint)
    return checkpoint, f"its own ({reason or '--pooling auto decides by evidence when it is run'})"


def _why_not_pooled(config: TransferConfig, checkpoint: Checkpoint) -> str | None:
    """Why `--pooling auto` tries no mean; None if it does."""
    if config.strategy == "scratch":
        return "from scratch the class is taken as it is"
    if config.keep_adapter:
        return "the base model of an adapter has no layer for the mean"
    try:
        with_mean_pooling(checkpoint)
    except UnpoolableError as reason:
        return str(reason)
    return None


def _some_rows(rows: Dataset, encoder: Encoder) -> Dataset:
    """Some rows of a split, encoded; in memory, so that the store of `datasets` gets no copy of them."""
    chosen = rows.select(_spread(MOST_TOKENIZED if encoder.by_length else SAMPLE, len(rows)))
    return encoder.rows(chosen.flatten_indices(keep_in_memory=True))


def _spread(count: int, rows: int) -> np.ndarray:
    """So many row numbers, or all, at even distances."""
    count = min(count, rows)
    return ((np.arange(count) + 0.5) / count * rows).astype(int)


def _describe(config: RunConfig, setting: Setting) -> list[str]:
    data, asked = setting.data, config.transfer
    rows = ", ".join(f"{len(rows):,} {name}" for name, rows in data.splits.items())
    start = "random weights, shaped as" if asked.strategy == "scratch" else "pretrained"
    stages = f"{len(setting.layers.stages) - 2} layers, {parameter_count(setting.checkpoint.model):,} parameters"
    return [
        f"strategy  {asked.strategy}",
        f"start     {start} {setting.checkpoint.provenance.id} ({stages})",
        f"pooling   {setting.pooling}",
        f"data      {data.origin.id} (rows: {rows})",
    ]


def _phases(config: TransferConfig, setting: Setting) -> list[str]:
    plan, forecasts = _forecast(setting.plan(config, config.strategy), setting)
    costs, full = _costs(plan, setting, _whole(forecasts)), _full_cost(config, setting)
    stages = setting.layers.stages
    cells = [
        _cells(each, cost / full, setting) for each, cost in zip(forecasts, costs, strict=True)
    ]
    rates = [
        (each.phase.name, _show_rates(each.rates, stages) or "solved, at no rate")
        for each in forecasts
    ]
    notes = [f"{each.phase.name}: {note}" for each in forecasts for note in each.notes]
    return [
        *(f"because   {reason}" for reason in plan.reasons),
        "",
        *_table([tuple(COLUMNS), *cells], "".join(COLUMNS.values())),
        "",
        *_table([("phase", "peak rates, from the head down"), *rates], "<<"),
        "",
        *notes,
        *LEGEND,
        f"cost      {_show_cost(sum(costs) / full)} x full",
    ]


def _strategies(config: TransferConfig, setting: Setting) -> list[str]:
    full, rows = _full_cost(config, setting), [("strategy", "learns at most", "x full", "")]
    everything = parameter_count(setting.checkpoint.model)
    for name in STRATEGIES:
        try:
            plan, forecasts = _forecast(setting.plan(config, name), setting)
        except UserError as reason:
            rows.append((name, "-", "-", f"not possible: {reason.message}"))
            continue
        cost = sum(_costs(plan, setting, _whole(forecasts))) / full
        most = max(each.trainable for each in forecasts)
        rows.append(
            (
                name,
                f"{most / everything:.2%}",
                _show_cost(cost),
                " -> ".join(p.name for p in plan.phases),
            )
        )
    return [
        "",
        *_table(rows, "<>><"),
        "",
        *LEGEND,
        f"auto uses {FIRST} unless {', '.join(CANDIDATES[:-1])} or {CANDIDATES[-1]} is possible and better beyond "
        f"noise in trials, which are made when it is run and cost at most {config.auto_budget:g} x full.",
    ]


def _forecast(plan: Plan, setting: Setting) -> tuple[Plan, list[Forecast]]:
    """The plan as the engine would run it on this network, and what each of its phases would do."""
    notes: dict[str, str] = {}
    solved = [phase.name for phase in plan.phases if phase.solver == "convex"]
    if solved:
        reason = setting.bytes_of(len(setting.layers.stages) - 1, plan, solved=True)
        if isinstance(reason, str):
            notes = dict.fromkeys(solved, f"the head is trained in steps, not solved: {reason}")
            plan = in_steps(plan)
    return plan, [
        _forecast_phase(phase, plan, setting, notes.get(phase.name)) for phase in plan.phases
    ]


def _forecast_phase(phase: Phase, plan: Plan, setting: Setting, note: str | None) -> Forecast:
    layers, fixed = setting.layers, setting.checkpoint.fixed
    learns = learning_rates(phase, plan, layers, fixed)
    rates = {layers.depth_of(name): rate for name, rate in learns.items()}
    parameters = {name: p.numel() for name, p in setting.checkpoint.model.named_parameters()}
    trainable = sum(parameters[name] for name in learns)
    if phase.adapter:
        trainable, adapted = _count_adapter(phase, setting.checkpoint, layers)
        rates = {depth: rate for depth, rate in rates.items() if depth in adapted}
    boundary = computed_below(phase, plan, layers, fixed)
    cached, reason = _size_of_cache(phase, plan, setting, boundary) if boundary else ("-", None)
    notes = (note, reason and f"what is frozen runs in every epoch: {reason}")
    boundary = 0 if reason else boundary
    rates = {} if phase.solver == "convex" else rates
    trains = pace(phase, plan, setting.labels, setting.training)
    return Forecast(phase, trains, trainable, rates, boundary, cached, tuple(filter(None, notes)))


def _count_adapter(
    phase: Phase, checkpoint: Checkpoint, layers: LayerMap
) -> tuple[int, set[float]]:
    """How many parameters learn with an adapter, and the positions of their stages."""
    shared = {id(tensor): tensor for tensor in checkpoint.model.parameters()}
    model = copy.deepcopy(
        checkpoint.model, shared
    )  # its modules are wrapped, its weights only looked at
    wrapped = wrap_with_adapter(
        model, checkpoint.head, str(phase.adapter), phase.adapter_rank, checkpoint.fixed
    )
    trainable = sum(
        parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad
    )
    return trainable, set(adapter_rates(wrapped, layers.depths).values())


def _size_of_cache(
    phase: Phase, plan: Plan, setting: Setting, boundary: int
) -> tuple[str, str | None]:
    """How much a phase would keep, and why it would not keep it."""
    solved = phase.solver == "convex"
    found = setting.bytes_of(boundary, plan, solved)
    if isinstance(found, str):
        return "-", found
    views = max(1, plan.cache.views)
    needed = found["train"] * views + (0 if solved else found.get("validation", 0))
    if solved and (not plan.cache.on or phase is not plan.phases[0]):
        return "in memory", None
    if not solved and setting.training.n_gpu > 1:
        return "-", "start one process a GPU with accelerate launch"
    full_store = room_for(cache_folder(plan.cache.folder), needed, plan.cache.limit_gb)
    if full_store:
        return ("in memory", None) if solved else ("-", full_store)
    return show_bytes(needed), None


def _costs(plan: Plan, setting: Setting, whole: Collection[str] = ()) -> tuple[float, ...]:
    counted = in_passes(plan, setting.labels, setting.training)
    return phase_costs(counted, setting.layers, setting.flops, setting.checkpoint.fixed, whole)


def _whole(forecasts: Sequence[Forecast]) -> set[str]:
    return {each.phase.name for each in forecasts if not each.boundary}


def _full_cost(config: TransferConfig, setting: Setting) -> float:
    return sum(_costs(setting.plan(config, "full"), setting))


def _cells(forecast: Forecast, cost: float, setting: Setting) -> tuple[str, ...]:
    """A phase's row of the table."""
    phase, share = forecast.phase, forecast.trainable / parameter_count(setting.checkpoint.model)
    how, trains = "solved", ("-", "-", "-")
    if forecast.pace:
        how = f"steps, {phase.adapter} adapters" if phase.adapter else f"steps, {phase.loss} loss"
        trains = (
            f"{forecast.pace.epochs:.4g}",
            f"{forecast.pace.steps:,}",
            str(forecast.pace.batch_size),
        )
    learns = f"{forecast.trainable:,} ({share:.2%})"
    where = _show_boundary(forecast.boundary, setting.layers.stages)
    return phase.name, how, *trains, learns, where, forecast.cached, _show_cost(cost)


def _show_boundary(boundary: int, stages: Sequence[str]) -> str:
    if not boundary:
        return "nothing"
    return f"below {'the ' if boundary == len(stages) - 1 else ''}{stages[boundary]}"


def _show_rates(rates: Mapping[int, float], stages: Sequence[str]) -> str:
    """`head 1.1e-03, layers 6-5 1.1e-04`: rates by position, from the head down, layers of one rate together."""
    top, shown = len(stages) - 1, []
    depths = sorted(rates, reverse=True)
    # Layers that follow one another have the same sum of position and place in the list.
    for _, run in itertools.groupby(
        enumerate(depths), lambda item: (item[0] + item[1], 0 < item[1] < top)
    ):
        for rate, same in itertools.groupby((depth for _, depth in run), rates.__getitem__):
            several = list(same)
            name = stages[several[0]] if len(several) == 1 else f"layers {several[0]}-{several[-1]}"
            shown.append(f"{name} {rate:.1e}")
    return ", ".join(shown)


def _show_cost(cost: float) -> str:
    """With two digits after the point, or two that say something."""
    return f"{cost:.2f}" if cost >= 0.1 or cost == 0 else f"{cost:.2g}"


def _table(rows: Sequence[tuple[str, ...]], alignment: str) -> list[str]:
    """Lines with columns of one width each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{side}{width}}"
            for cell, side, width in zip(row, alignment, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
