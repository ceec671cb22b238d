"""Weights between steps: weight averaging and WiSE-FT, selected on the validation split.

Averaging over the last steps: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and
Better Generalization" (arXiv 1803.05407). Interpolation between the weights before and after
training: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback, TrainerState, set_seed

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.models.weights import copy_weights, restore_weights
from hf_transfer.strategies.plan import Phase, Plan
from hf_transfer.training.callbacks import BestStep
from hf_transfer.training.trainer import PhaseTrainer

log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]

# Alphas of WiSE-FT above 0: weights = (1 - alpha) * initial + alpha * final.
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WISE_FT = "{:.1f} of the way (WiSE-FT)"
PREFIX = "candidate"  # of metrics, so that no callback takes them for those of a step


@dataclass(frozen=True)
class Candidate:
    """Weights by their names in the model, and whether BatchNorm statistics are among them."""

    name: str
    weights: Tensors
    has_statistics: bool = False


class WeightAveraging(TrainerCallback):
    """Averages the weights of the last steps of a phase, and copies its initial weights.

    The average is over the last `fraction` of the steps, at least two of them, of the trainable
    parameters; if early stopping ends the phase before these steps, there is none. The initial
    weights are copied with `interpolate`.
    """

    def __init__(self, model: nn.Module, fraction: float, interpolate: bool) -> None:
        self.model = model
        self.fraction = fraction
        self.interpolate = interpolate
        self.average: Tensors = {}
        self.initial: Tensors = {}
        self.averaged_steps = 0

    def on_train_begin(self, *_: object, **__: object) -> None:
        if self.interpolate:
            self.initial = copy_weights(self.model)

    def on_step_end(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Add the weights of a step to the average, in float32, on their device."""
        last_steps = max(2, round(self.fraction * state.max_steps))
        if not self.fraction or state.global_step <= state.max_steps - last_steps:
            return
        self.averaged_steps += 1
        for name in self._trained():
            new = self.model.get_parameter(name).detach().float()
            if name in self.average:
                self.average[name].lerp_(new, 1 / self.averaged_steps)
            else:
                self.average[name] = new.clone()

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.average, "before": self.initial, "steps": self.averaged_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.initial = dict(state["before"])
        self.averaged_steps = state["steps"]
        parameters = dict(self.model.named_parameters())
        for name, mean in state["mean"].items():
            self.average[name] = mean.to(parameters[name].device)

    def candidates(self, final: Tensors) -> Iterator[Candidate]:
        """The candidates beside the `final` weights of the phase, one at a time."""
        if self.averaged_steps > 1:
            yield Candidate(f"average of the last {self.averaged_steps} steps", self.average)
        trained = self._trained()
        # Where the best step is the first one, both ends are the same weights, and candidates would
        # differ in their BatchNorm statistics only.
        if not self.initial or all(torch.equal(self.initial[key], final[key]) for key in trained):
            return
        yield Candidate(WISE_FT.format(0), self.initial, has_statistics=True)
        for alpha in ALPHAS:
            mixed = {}
            for key in trained:
                mixed[key] = self.initial[key].float().lerp(final[key].float(), alpha)
            yield Candidate(WISE_FT.format(alpha), mixed)

    def _trained(self) -> list[str]:
        parameters = self.model.named_parameters()
        return [name for name, parameter in parameters if parameter.requires_grad]


def add_weight_averaging(
    trainer: PhaseTrainer, phase: Phase, plan: Plan, training: TrainingConfig
) -> WeightAveraging | None:
    """The callback that collects candidates, now part of the trainer.

    None without --average_last and --wise_ft, and without a validation split to select by. WiSE-FT
    is for the last phase, where it trains the body after a head: its initial weights have a head
    that fits the body as it was, without which no point between would make sense. With `gradual`
    it begins where the phases of some of the layers ended, since each of these was already selected
    on validation.
    """
    trains_body_after_head = plan.phases[0].trainable == ("head",) and "body" in phase.trainable
    interpolate = training.wise_ft and trains_body_after_head and phase == plan.phases[-1]
    if trainer.eval_dataset is None or not (training.average_last or interpolate):
        return None
    averaging = WeightAveraging(trainer.model, training.average_last, interpolate)
    trainer.add_callback(averaging)
    return averaging


def select_by_validation(
    trainer: PhaseTrainer, averaging: WeightAveraging, final_name: str
) -> dict[str, Any]:
    """Give the model its best weights, and return their name and the value of each candidate.

    The values are those of metric_for_best_model on the validation split; the final weights of the
    phase, called `final_name`, win a tie. Every process selects the same: it has the same weights,
    and Trainer gathers the metrics from all.
    """
    metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
    sign = -1 if metric == "loss" else 1

    def evaluate() -> float:
        return float(trainer.evaluate(metric_key_prefix=PREFIX)[f"{PREFIX}_{metric}"])

    trainer.remove_callback(BestStep)  # it would take a candidate for a step
    values = {final_name: evaluate()}
    best_name = final_name
    final = copy_weights(trainer.model)
    best = final
    for candidate in averaging.candidates(final):
        restore_weights(trainer.model, candidate.weights)
        if not candidate.has_statistics:
            update_batch_norm(trainer)
        values[candidate.name] = evaluate()
        if sign * values[candidate.name] > sign * values[best_name]:
            best_name = candidate.name
            best = copy_weights(trainer.model)
    restore_weights(trainer.model, best)
    selected = f"{best_name}, {metric} {values[best_name]:.4g} on validation"
    log.info("selected: %s (%s: %.4g)", selected, final_name, values[final_name])
    candidates = [{"name": name, "value": value} for name, value in values.items()]
    return {"kept": best_name, "candidates": candidates}


def update_batch_norm(trainer: PhaseTrainer) -> None:
    """Recompute the running statistics of trainable BatchNorm over the augmented training rows.

    As torch.optim.swa_utils.update_bn, which does not know batches with names, and would reset
    frozen statistics too.
    """
    # The same random numbers and rows whether the run was resumed or not.
    set_seed(trainer.args.seed)
    trainer.batches.set_epoch(0)
    trainer.model.train()  # frozen modules stay in eval mode: models/freeze.py
    momenta = {}
    for module in trainer.model.modules():
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
            module.reset_running_stats()
            momenta[module] = module.momentum
            module.momentum = None  # in torch, the plain mean over batches
    if not momenta:
        return
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for batch in trainer.get_train_dataloader():
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.augmented(batch)))
    for norm, momentum in momenta.items():
        norm.momentum = momentum
