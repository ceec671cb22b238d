"""Weights that a phase may keep in place of those it ended with: a mean of its last steps, or part of the way back.

The mean: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization" (arXiv 1803.05407).
The way: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv 2109.01903).
Each is a candidate, and the validation split chooses.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback, set_seed

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.models.weights import copy_weights, restore_weights
from hf_transfer.strategies.plan import Phase, Plan
from hf_transfer.training.callbacks import BestStep
from hf_transfer.training.trainer import PhaseTrainer

log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]

PARTS = tuple(
    tenths / 10 for tenths in range(10)
)  # of the way; at 1 lies what the phase ended with
PREFIX = "candidate"  # of metrics, so that no callback takes them for those of a step


@dataclass(frozen=True)
class Candidate:
    """Weights to try, by their names in the model, and whether they bring the BatchNorm statistics that fit them."""

    name: str
    weights: Tensors
    has_statistics: bool = False


class Candidates(TrainerCallback):
    """Gathers, while a phase runs, what it may keep in place of the weights that it ends with.

    That is the mean over the last `share` of its steps, two at least, of the parameters that learn, and with `way` the
    weights that it began with. Where early stopping ends a phase before these last steps, there is no mean.
    """

    def __init__(self, model: nn.Module, share: float, way: bool) -> None:
        self.model, self.share, self.way = model, share, way
        self.mean: Tensors = {}
        self.before: Tensors = {}
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Copy the weights that the way begins with."""
        if self.way:
            self.before = copy_weights(self.model)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the weights of a step into the mean, in 32 bits, where they lie."""
        if not self.share or state.global_step <= state.max_steps - max(
            2, round(self.share * state.max_steps)
        ):
            return
        self.steps += 1
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                new = parameter.detach().float()
                self.mean[name] = (
                    self.mean[name].lerp_(new, 1 / self.steps) if name in self.mean else new.clone()
                )

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far."""
        return {"mean": self.mean, "before": self.before, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember it again."""
        self.before, self.steps = dict(state["before"]), state["steps"]
        devices = {name: parameter.device for name, parameter in self.model.named_parameters()}
        self.mean = {name: tensor.to(devices[name]) for name, tensor in state["mean"].items()}

    def behind(self, ended: Tensors) -> Iterator[Candidate]:
        """The candidates beside the weights that the phase ended with, one at a time."""
        if self.steps > 1:
            yield Candidate(f"average of the last {self.steps} steps", self.mean)
        learned = [
            name for name, parameter in self.model.named_parameters() if parameter.requires_grad
        ]
        # Where the best step is the first, both ends are one, and only BatchNorm statistics would be compared.
        apart = self.before and not all(
            torch.equal(self.before[name], ended[name]) for name in learned
        )
        for part in PARTS if apart else ():
            between = {
                name: self.before[name].float().lerp(ended[name].float(), part) for name in learned
            }
            name, start = f"{part:.1f} of the way (WiSE-FT)", part == 0
            yield Candidate(name, self.before if start else between, has_statistics=start)


def gather_candidates(
    trainer: PhaseTrainer, phase: Phase, plan: Plan, training: TrainingConfig
) -> Candidates | None:
    """What gathers the candidates while the trainer runs; None where no option asks for any, or nothing could choose.

    The way of WiSE-FT is that of the last phase, where it trains the body after a head: its start has a head that fits
    the body as it was, without which no point between would mean anything. With `gradual` it begins where the phases
    of a part of the layers ended, since each of these has been chosen on validation already.
    """
    way = training.wise_ft and plan.phases[0].trainable == ("head",) and "body" in phase.trainable
    way = way and phase == plan.phases[-1]
    if trainer.eval_dataset is None or not (training.average_last or way):
        return None
    candidates = Candidates(trainer.model, training.average_last, way)
    trainer.add_callback(candidates)
    return candidates


def keep_best(trainer: PhaseTrainer, candidates: Candidates, ended_with: str) -> dict[str, Any]:
    """What was kept of all candidates and the value of each, for the record; the model has the best one's weights.

    The values are those of metric_for_best_model on the validation split; what the phase ended with wins a tie. Every
    process comes to the same choice: it has the same weights, and Trainer gathers the metrics from all.
    """
    metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
    sign = -1 if metric == "loss" else 1

    def judge() -> float:
        return float(trainer.evaluate(metric_key_prefix=PREFIX)[f"{PREFIX}_{metric}"])

    trainer.remove_callback(BestStep)  # it would take a candidate for a step
    values, kept = {ended_with: judge()}, ended_with
    ended = best = copy_weights(trainer.model)
    for candidate in candidates.behind(ended):
        restore_weights(trainer.model, candidate.weights)
        if not candidate.has_statistics:
            renew_statistics(trainer)
        values[candidate.name] = judge()
        if sign * values[candidate.name] > sign * values[kept]:
            kept, best = candidate.name, copy_weights(trainer.model)
    restore_weights(trainer.model, best)
    log.info(
        "kept: %s, %s %.4g on validation (%s: %.4g)",
        kept,
        metric,
        values[kept],
        ended_with,
        values[ended_with],
    )
    return {
        "kept": kept,
        "candidates": [{"name": name, "value": value} for name, value in values.items()],
    }


def renew_statistics(trainer: PhaseTrainer) -> None:
    """Let BatchNorm that trains measure its running statistics afresh, over the training rows as training sees them.

    As torch.optim.swa_utils.update_bn, which knows no batches of names and would reset the frozen ones too.
    """
    set_seed(
        trainer.args.seed
    )  # whatever was drawn before, and whichever epoch it was: as where the run went on
    trainer.batches.set_epoch(0)
    trainer.model.train()  # what is frozen stays in eval mode: models/freezing.py
    norms = [
        m
        for m in trainer.model.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain mean over batches
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for batch in trainer.get_train_dataloader():
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.augmented(batch)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
