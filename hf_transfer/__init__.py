"""hf_transfer: from a pretrained checkpoint and a few labels to an honestly evaluated model."""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> its module, imported at first use: `hf-transfer --help` must not wait for torch.
_HOMES = {
    "FINE_TUNING": "config",
    "PRETRAINING": "config",
    "COMPARING": "config",
    "HubTarget": "config",
    "PushConfig": "config",
    "TransferConfig": "config",
    "parse_config": "cli.flags",
    "parse_flags": "cli.flags",
    "run_command": "cli.command",
    "UserError": "errors",
    "Stopped": "errors",
    "Finished": "errors",
    "Estimate": "record",
    "RunRecord": "record",
    "read_record": "record",
    "TASKS": "tasks",
    "find_task": "tasks",
    "Data": "data.sources",
    "load_data": "data.sources",
    "Checkpoint": "models.checkpoint",
    "LayerMap": "models.layers",
    "layer_map": "models.layers",
    "build_checkpoint": "models.checkpoint",
    "load_checkpoint": "models.checkpoint",
    "Phase": "strategies.plan",
    "Plan": "strategies.plan",
    "choose_plan": "studies.choose",
    "run_plan": "training.engine",
    "Trained": "training.engine",
    "split_model": "frozen.split",
    "Predictions": "evaluation.predict",
    "Predictor": "models.predictor",
    "evaluate": "evaluation.evaluate",
    "measure": "evaluation.evaluate",
    "predict": "evaluation.predict",
    "load_pipeline": "inference",
    "load_predictor": "inference",
    "require_metrics": "evaluation.metrics",
    "preflight": "preflight",
    "save": "sharing.folder",
    "push": "sharing.hub",
    "verify": "sharing.verify",
    "compare": "studies.compare",
    "write_tables": "studies.compare_tables",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_transfer' has no attribute {name!r}")
    # Set after the import, which binds a module of the same name (preflight) to its package.
    globals()[name] = value = getattr(import_module(f"hf_transfer.{_HOMES[name]}"), name)
    return value
