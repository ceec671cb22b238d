"""What a run would do, as text, before anything is learned or written."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from datasets import Dataset

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.run import RunConfig
from hf_transfer.config.transfer import Strategy, TransferConfig
from hf_transfer.data.augmentation import fit_augmentation
from hf_transfer.data.encode import Encoder
from hf_transfer.data.sources import load_data
from hf_transfer.errors import UserError
from hf_transfer.evaluation.metrics import load_tag_metrics, require_metrics
from hf_transfer.frozen.features import estimate_features
from hf_transfer.frozen.forward_pass import SAMPLE_ROWS, FrozenLayers
from hf_transfer.frozen.split import UnsplittableError, split_model
from hf_transfer.job import Job, make_job
from hf_transfer.models.adapters import adapter_rates, wrap_with_adapter
from hf_transfer.models.checkpoint import Checkpoint, load_checkpoint, load_preparation
from hf_transfer.models.head import parameter_count
from hf_transfer.models.layers import LayerMap
from hf_transfer.store.entries import resolve_cache_dir, room_for, show_bytes
from hf_transfer.strategies.auto import CANDIDATES, DEFAULT_STRATEGY
from hf_transfer.strategies.cost import Network, cache_boundary, phase_costs
from hf_transfer.strategies.make_plan import log_unused_flags, make_plan
from hf_transfer.strategies.phases import STRATEGIES
from hf_transfer.strategies.plan import Phase, Plan, learning_rates, without_closed_form
from hf_transfer.studies.choose import explain_plan, explain_strategy
from hf_transfer.studies.choose_pooling import READS_OWN, PoolingChoice, pooling_without_evidence
from hf_transfer.studies.trials import measure_network
from hf_transfer.training.engine import require_runnable
from hf_transfer.training.epochs import PhaseLength, phase_length, with_passes_as_epochs

MAX_TOKENIZED = 1000  # texts of a split whose lengths represent those of all

COLUMNS = ("phase", "how", "epochs", "steps", "batch", "learns", "computed once", "cache", "x full")
ALIGNMENT = "<<>>>><>>"
LEGEND = (
    "computed once: frozen layers, all below the stage that is named; their activations are cached",
    "x full: operations of training relative to --strategy full; evaluations are not counted",
)


@dataclass(frozen=True)
class Preview:
    """A job, its network measured, some encoded rows of each split, and the flags."""

    transfer: TransferConfig
    cache: CacheConfig
    job: Job
    pooling: PoolingChoice
    network: Network
    samples: Mapping[str, Dataset]
    sizes: dict[tuple[Any, ...], dict[str, int] | str] = field(default_factory=dict)

    def plan(self, strategy: str) -> Plan:
        """The plan of a strategy; raises UserError where its run would, before it learns."""
        plan = make_plan(replace(self.transfer, strategy=cast(Strategy, strategy)), self.job)
        require_runnable(self.job, plan)
        return plan

    def cached_bytes(self, boundary: int, plan: Plan, is_probe: bool) -> dict[str, int] | str:
        """Bytes of a view of each split at a boundary, or why the network cannot be split there."""
        key = (boundary, is_probe, plan.frozen_dtype)
        if key not in self.sizes:
            try:
                self.sizes[key] = self._estimate(boundary, plan, is_probe)
            except UnsplittableError as reason:
                self.sizes[key] = str(reason)
        return self.sizes[key]

    def _estimate(self, boundary: int, plan: Plan, is_probe: bool) -> dict[str, int]:
        layers = FrozenLayers(
            split_model(self.job.model, "head" if is_probe else boundary),
            above=frozenset(),
            encoder=self.job.encoder,
            batch_size=SAMPLE_ROWS,
            quiet=True,
            dtype=plan.frozen_dtype,
        )
        splits = self.job.data.splits
        return {
            name: estimate_features(layers, rows, len(splits[name]))
            for name, rows in self.samples.items()
        }


@dataclass(frozen=True)
class PhasePreview:
    """What a phase would do; `rates` by position of a stage, `notes` on what differs from its plan.

    `boundary` is the number of stages that are computed once.
    """

    phase: Phase
    length: PhaseLength | None
    trainable: int
    rates: Mapping[int, float]
    boundary: int
    cached: str
    notes: tuple[str, ...]


def dry_run(config: RunConfig) -> str:
    """The plan of a run and its cost; for `--strategy auto` every strategy and its cost.

    Loads checkpoint and data, runs the network forward on a few rows, and writes nothing but the
    images that it decoded, into the store. Raises UserError as a run does.
    """
    preview = _prepare(config)
    show = _strategies if config.transfer.strategy == "auto" else _phases
    return "\n".join([*_describe(preview), *show(preview)])


def _prepare(config: RunConfig) -> Preview:
    training = config.training
    preparation = load_preparation(config.model, config.task, config.cache)
    data = load_data(config.data, config.task, training.seed, preparation)
    if data.task.labels_words:
        load_tag_metrics(config.evaluation.metrics, data.labels)
    else:
        require_metrics(config.evaluation.metrics, data.problem_type)
    checkpoint = load_checkpoint(config.model, data, training.seed)
    pooling = pooling_without_evidence(config.transfer, checkpoint)
    job = make_job(pooling.checkpoint, data, training)
    samples = {"train": _sample(data.train, job.encoder)}
    if data.validation is not None:
        samples["validation"] = _sample(data.validation, job.encoder)
    fit_augmentation(training.augmentation, job.encoder, samples["train"])
    some = samples["train"].select(_evenly_spaced(SAMPLE_ROWS, len(samples["train"])))
    network = measure_network(job, some)
    return Preview(config.transfer, config.cache, job, pooling, network, samples)


def _sample(rows: Dataset, encoder: Encoder) -> Dataset:
    """Some rows of a split, encoded; in memory, so that the cache of `datasets` gets no copy."""
    count = MAX_TOKENIZED if encoder.by_length else SAMPLE_ROWS
    chosen = rows.select(_evenly_spaced(count, len(rows)))
    return encoder.rows(chosen.flatten_indices(keep_in_memory=True))


def _evenly_spaced(count: int, rows: int) -> np.ndarray:
    """`count` row numbers, or all, at even distances."""
    count = min(count, rows)
    return ((np.arange(count) + 0.5) / count * rows).astype(int)


def _describe(preview: Preview) -> list[str]:
    data = preview.job.data
    strategy = preview.transfer.strategy
    rows = ", ".join(f"{len(rows):,} {name}" for name, rows in data.splits.items())
    start = "random weights, shaped as" if strategy == "scratch" else "pretrained"
    start += f" {preview.job.checkpoint.provenance.id}"
    depth = preview.network.layers.num_layers
    return [
        f"strategy  {strategy}",
        f"start     {start} ({depth} layers, {parameter_count(preview.job.model):,} parameters)",
        f"pooling   {_describe_pooling(preview.pooling)}",
        f"data      {data.origin.id} (rows: {rows})",
    ]


def _describe_pooling(pooling: PoolingChoice) -> str:
    if pooling.pooling == "mean":
        return "the mean over all tokens"
    if pooling.is_open:
        return "its own (--pooling auto decides by evidence when it is run)"
    reasons = "; ".join(pooling.reasons).removeprefix(f"{READS_OWN}: ")
    return f"its own ({reasons})" if reasons else "its own"


def _phases(preview: Preview) -> list[str]:
    requested = preview.plan(preview.transfer.strategy)
    log_unused_flags(requested, preview.job.training)
    phases, costs = _preview_phases(requested, preview)
    full = _full_cost(preview)
    cells: list[tuple[str, ...]] = [COLUMNS]
    rates = [("phase", "peak rates, from the head down")]
    notes = []
    for each, cost in zip(phases, costs, strict=True):
        cells.append(_cells(each, cost / full, preview))
        shown = _show_rates(each.rates, preview.network.layers.stages)
        rates.append((each.phase.name, shown or "solved, without a rate"))
        notes += [f"{each.phase.name}: {note}" for note in each.notes]
    reasons = (explain_strategy(preview.transfer), *explain_plan(requested, preview.job))
    return [
        *map("because   {}".format, reasons),
        "",
        *_table(cells, ALIGNMENT),
        "",
        *_table(rates, "<<"),
        "",
        *notes,
        *LEGEND,
        f"cost      {_show_cost(sum(costs) / full)} x full",
    ]


def _strategies(preview: Preview) -> list[str]:
    full = _full_cost(preview)
    rows = [("strategy", "learns at most", "x full", "")]
    for name in STRATEGIES:
        try:
            phases, costs = _preview_phases(preview.plan(name), preview)
        except UserError as reason:
            rows.append((name, "-", "-", f"not possible: {reason.message}"))
            continue
        share = max(each.trainable for each in phases) / parameter_count(preview.job.model)
        names = " -> ".join(each.phase.name for each in phases)
        rows.append((name, f"{share:.2%}", _show_cost(sum(costs) / full), names))
    others = f"{', '.join(CANDIDATES[:-1])} or {CANDIDATES[-1]}"
    return [
        "",
        *_table(rows, "<>><"),
        "",
        *LEGEND,
        f"auto uses {DEFAULT_STRATEGY} unless {others} is possible and better beyond noise in "
        "trials, which are made when it is run and cost at most "
        f"{preview.transfer.auto_budget:g} x full.",
    ]


def _preview_phases(plan: Plan, preview: Preview) -> tuple[list[PhasePreview], tuple[float, ...]]:
    """What each phase would do as the engine would run it on this network, and its cost."""
    notes: dict[str, str] = {}
    solved = [phase.name for phase in plan.phases if phase.solver == "convex"]
    if solved:
        reason = preview.cached_bytes(preview.network.layers.head, plan, is_probe=True)
        if isinstance(reason, str):
            notes = dict.fromkeys(solved, f"the head is trained in steps, not solved: {reason}")
            plan = without_closed_form(plan)
    phases = [_preview_phase(phase, plan, preview, notes.get(phase.name)) for phase in plan.phases]
    uncached = {each.phase.name for each in phases if not each.boundary}
    return phases, _costs(plan, preview, uncached)


def _preview_phase(phase: Phase, plan: Plan, preview: Preview, note: str | None) -> PhasePreview:
    job = preview.job
    network = preview.network
    layers = network.layers
    learns = learning_rates(phase, plan, layers, network.fixed)
    rates = {layers.depth_of(name): rate for name, rate in learns.items()}
    sizes = {name: p.numel() for name, p in job.model.named_parameters()}
    trainable = sum(map(sizes.__getitem__, learns))
    if phase.adapter:
        trainable, adapted = _count_adapter(phase, job.checkpoint, layers)
        rates = {depth: rate for depth, rate in rates.items() if depth in adapted}
    boundary = cache_boundary(phase, plan, network, preview.cache.cache_frozen)
    cached, reason = "-", None
    if boundary:
        cached, reason = _size_of_cache(phase, plan, preview, boundary)
    notes = [note] if note else []
    if reason:
        notes.append(f"frozen layers run in every epoch: {reason}")
        boundary = 0
    if phase.solver == "convex":
        rates = {}
    length = phase_length(phase, plan, job.labels, job.training)
    return PhasePreview(phase, length, trainable, rates, boundary, cached, tuple(notes))


def _count_adapter(
    phase: Phase, checkpoint: Checkpoint, layers: LayerMap
) -> tuple[int, set[float]]:
    shared = {id(tensor): tensor for tensor in checkpoint.model.parameters()}
    # Its modules are wrapped, its weights only read.
    model = copy.deepcopy(checkpoint.model, shared)
    wrapped = wrap_with_adapter(
        model, checkpoint.head, str(phase.adapter), phase.adapter_rank, checkpoint.fixed
    )
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    return trainable, set(adapter_rates(wrapped, layers.depths).values())


def _size_of_cache(
    phase: Phase, plan: Plan, preview: Preview, boundary: int
) -> tuple[str, str | None]:
    """The size of what a phase would cache, and why it would not cache it."""
    cache = preview.cache
    is_probe = phase.solver == "convex"
    sizes = preview.cached_bytes(boundary, plan, is_probe)
    if isinstance(sizes, str):
        return "-", sizes
    needed = sizes["train"] * max(1, plan.cached_views)
    in_memory = is_probe and (not cache.cache_frozen or phase is not plan.phases[0])
    if not is_probe:
        needed += sizes.get("validation", 0)
        if preview.job.training.n_gpu > 1:
            return "-", "start one process per GPU with accelerate launch"
    no_room = room_for(resolve_cache_dir(cache.cache_dir), needed, cache.cache_limit_gb)
    if in_memory or (is_probe and no_room):
        return "in memory", None
    return ("-", no_room) if no_room else (show_bytes(needed), None)


def _costs(plan: Plan, preview: Preview, uncached: Collection[str] = ()) -> tuple[float, ...]:
    counted = with_passes_as_epochs(plan, preview.job.labels, preview.job.training)
    return phase_costs(counted, preview.network, preview.cache.cache_frozen, uncached)


def _full_cost(preview: Preview) -> float:
    return sum(_costs(preview.plan("full"), preview))


def _cells(each: PhasePreview, cost: float, preview: Preview) -> tuple[str, ...]:
    phase = each.phase
    share = each.trainable / parameter_count(preview.job.model)
    how, length = "solved", ("-", "-", "-")
    if each.length:
        steps = each.length
        how = f"steps, {phase.adapter} adapters" if phase.adapter else f"steps, {phase.loss} loss"
        length = (f"{steps.epochs:.4g}", f"{steps.steps:,}", str(steps.batch_size))
    learns = f"{each.trainable:,} ({share:.2%})"
    boundary = "nothing"
    if each.boundary:
        layers = preview.network.layers
        article = "the " if each.boundary == layers.head else ""
        boundary = f"below {article}{layers.stages[each.boundary]}"
    return phase.name, how, *length, learns, boundary, each.cached, _show_cost(cost)


def _show_rates(rates: Mapping[int, float], stages: Sequence[str]) -> str:
    """`head 1.1e-03, layers 6-5 1.1e-04`: from the head down, layers of one rate together."""
    groups: list[list[int]] = []
    for depth in sorted(rates, reverse=True):
        is_layer = 0 < depth < len(stages) - 2  # embeddings and head are shown alone
        if groups and is_layer and groups[-1][-1] == depth + 1 and rates[depth + 1] == rates[depth]:
            groups[-1].append(depth)
        else:
            groups.append([depth])
    shown = []
    for group in groups:
        name = stages[group[0]] if len(group) == 1 else f"layers {group[0]}-{group[-1]}"
        shown.append(f"{name} {rates[group[0]]:.1e}")
    return ", ".join(shown)


def _show_cost(cost: float) -> str:
    """With two digits after the point, or two significant ones."""
    return f"{cost:.2f}" if cost >= 0.1 or cost == 0 else f"{cost:.2g}"


def _table(rows: Sequence[tuple[str, ...]], alignment: str) -> list[str]:
    widths = np.vectorize(len)(np.array(rows)).max(0)
    shape = "  ".join(f"{{:{side}{width}}}" for side, width in zip(alignment, widths, strict=True))
    return [shape.format(*row).rstrip() for row in rows]
