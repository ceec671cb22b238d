"""hf_transfer: from a pretrained checkpoint and a few labels to an honestly evaluated model."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that editors and type checkers see the public names
    from hf_transfer.cli.command import run_command
    from hf_transfer.cli.flags import read_config, read_flags
    from hf_transfer.cli.recipe import parse_config
    from hf_transfer.config.cache import CacheConfig
    from hf_transfer.config.data import DataConfig, SourceConfig
    from hf_transfer.config.embed import EmbedConfig
    from hf_transfer.config.evaluation import EvaluationConfig
    from hf_transfer.config.hub import HubTarget, PushConfig
    from hf_transfer.config.model import ModelConfig
    from hf_transfer.config.run import COMPARING, FINE_TUNING, PRETRAINING, RunConfig
    from hf_transfer.config.training_arguments import TrainingConfig
    from hf_transfer.config.transfer import TransferConfig
    from hf_transfer.config.validate import validate
    from hf_transfer.data.prepared import Preparation
    from hf_transfer.data.sources import Data, load_data
    from hf_transfer.embeddings import Embeddings, embed, embed_dataset
    from hf_transfer.errors import Finished, Stopped, UserError
    from hf_transfer.evaluation.evaluate import evaluate, measure
    from hf_transfer.evaluation.metrics import load_tag_metrics, require_metrics
    from hf_transfer.evaluation.predict import Predictions, predict
    from hf_transfer.frozen.split import split_model
    from hf_transfer.inference import answers, load_finished, load_predictor
    from hf_transfer.job import Job, make_job
    from hf_transfer.models.checkpoint import Checkpoint, load_checkpoint, load_preparation
    from hf_transfer.models.from_config import build_checkpoint
    from hf_transfer.models.layers import LayerMap, layer_map
    from hf_transfer.models.predictor import Predictor
    from hf_transfer.record import Estimate, RunRecord, read_record
    from hf_transfer.sharing.folder import save
    from hf_transfer.sharing.hub import push
    from hf_transfer.sharing.verify import verify
    from hf_transfer.strategies.make_plan import make_plan
    from hf_transfer.strategies.plan import Choice, Phase, Plan
    from hf_transfer.studies.choose import choose_plan
    from hf_transfer.studies.compare import compare
    from hf_transfer.studies.compare_tables import write_tables
    from hf_transfer.tasks import TASKS, find_task
    from hf_transfer.training.engine import Trained, run_plan

__version__ = "0.1.0"

# Public name -> its module. Imported at first use: `hf-transfer --help` must not wait for torch.
_MODULES = {
    "run_command": "cli.command",
    "read_config": "cli.flags",
    "read_flags": "cli.flags",
    "parse_config": "cli.recipe",
    "CacheConfig": "config.cache",
    "DataConfig": "config.data",
    "SourceConfig": "config.data",
    "EmbedConfig": "config.embed",
    "EvaluationConfig": "config.evaluation",
    "HubTarget": "config.hub",
    "PushConfig": "config.hub",
    "ModelConfig": "config.model",
    "COMPARING": "config.run",
    "FINE_TUNING": "config.run",
    "PRETRAINING": "config.run",
    "RunConfig": "config.run",
    "TrainingConfig": "config.training_arguments",
    "TransferConfig": "config.transfer",
    "validate": "config.validate",
    "Preparation": "data.prepared",
    "Data": "data.sources",
    "load_data": "data.sources",
    "Embeddings": "embeddings",
    "embed": "embeddings",
    "embed_dataset": "embeddings",
    "Finished": "errors",
    "Stopped": "errors",
    "UserError": "errors",
    "evaluate": "evaluation.evaluate",
    "measure": "evaluation.evaluate",
    "load_tag_metrics": "evaluation.metrics",
    "require_metrics": "evaluation.metrics",
    "Predictions": "evaluation.predict",
    "predict": "evaluation.predict",
    "split_model": "frozen.split",
    "answers": "inference",
    "load_finished": "inference",
    "load_predictor": "inference",
    "Job": "job",
    "make_job": "job",
    "Checkpoint": "models.checkpoint",
    "load_checkpoint": "models.checkpoint",
    "load_preparation": "models.checkpoint",
    "build_checkpoint": "models.from_config",
    "Predictor": "models.predictor",
    "LayerMap": "models.layers",
    "layer_map": "models.layers",
    "Estimate": "record",
    "RunRecord": "record",
    "read_record": "record",
    "save": "sharing.folder",
    "push": "sharing.hub",
    "verify": "sharing.verify",
    "make_plan": "strategies.make_plan",
    "Choice": "strategies.plan",
    "Phase": "strategies.plan",
    "Plan": "strategies.plan",
    "choose_plan": "studies.choose",
    "compare": "studies.compare",
    "write_tables": "studies.compare_tables",
    "TASKS": "tasks",
    "find_task": "tasks",
    "Trained": "training.engine",
    "run_plan": "training.engine",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_transfer' has no attribute {name!r}")
    return getattr(import_module(f"hf_transfer.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
