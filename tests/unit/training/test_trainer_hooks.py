"""The private parts of transformers' Trainer that we rely on are as they were.

A new transformers version fails here, with the name of what changed, before it fails in a run.
"""

import inspect
import re
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

import hf_transfer
from hf_transfer.training.trainer import PhaseTrainer

# Parameters of each method of Trainer that PhaseTrainer overrides, without their types.
SIGNATURES = {
    "_get_grad_norm": "(self, model, grad_norm=None)",
    "_init_training_state": "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, "
    "resume_from_checkpoint, trial)",
    "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
    "_load_optimizer_and_scheduler": "(self, checkpoint)",
    "_load_rng_state": "(self, checkpoint)",
    "_load_scaler": "(self, checkpoint)",
    "_prepare_inputs": "(self, inputs)",
    "_save_checkpoint": "(self, model, trial)",
    "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
    "create_optimizer": "(self, model=None)",
    "evaluation_loop": "(self, dataloader, description, prediction_loss_only=None, "
    "ignore_keys=None, metric_key_prefix='eval')",
    "get_train_dataloader": "(self)",
    "training_step": "(self, model, inputs, num_items_in_batch=None)",
}
# Private attributes that we read or set, and their types after a step.
ATTRIBUTES = {
    "_tr_loss": torch.Tensor,
    "_globalstep_last_logged": int,
    "_prepare_inputs": MethodType,
}
PACKAGE = Path(hf_transfer.__file__).parent
VERSION = f"transformers {transformers.__version__}"


class Linear(torch.nn.Module):
    """A model of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).square().mean()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A bare Trainer after a step."""
    arguments = TrainingArguments(
        str(tmp_path_factory.mktemp("out")), max_steps=1, use_cpu=True, disable_tqdm=True
    )
    rows: Any = [{"x": torch.ones(2)}] * 8
    trainer = Trainer(Linear(), arguments, train_dataset=rows)
    trainer.train()
    return trainer


def test_the_table_has_every_method_of_trainer_that_is_overridden() -> None:
    ours = PhaseTrainer.__mro__[: PhaseTrainer.__mro__.index(Trainer)]
    assert len(ours) == 2
    overridden = {name for kind in ours for name in vars(kind) if not name.startswith("__")}
    assert sorted(overridden & set(dir(Trainer))) == sorted(SIGNATURES)
    assert sum(name.startswith("_") for name in SIGNATURES) == 8


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_method_that_is_overridden_has_the_signature_that_the_override_was_written_for(
    name: str,
) -> None:
    assert hasattr(Trainer, name), f"{VERSION}: Trainer has no {name}; see PhaseTrainer.{name}"
    signature = inspect.signature(getattr(Trainer, name))
    bare = [
        each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()
    ]
    found = str(inspect.Signature(bare))
    assert found == SIGNATURES[name], f"{VERSION}: Trainer.{name}{found}; see PhaseTrainer.{name}"


def test_the_table_has_every_private_attribute_of_trainer_that_is_used(trained: Trainer) -> None:
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        used |= set(re.findall(r"\btrainer\.(_[a-z]\w*)", path.read_text()))
    own = (PACKAGE / "training" / "trainer.py").read_text()
    used |= set(re.findall(r"\bself\.(_[a-z]\w*)", own))
    assert {name for name in used if hasattr(trained, name)} == set(ATTRIBUTES)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_private_attribute_that_is_used_is_there_after_a_step(
    name: str, trained: Trainer
) -> None:
    assert hasattr(trained, name), f"{VERSION}: Trainer has no {name}"
    kind = type(getattr(trained, name))
    assert issubclass(kind, ATTRIBUTES[name]), f"{VERSION}: Trainer.{name} is a {kind}"
