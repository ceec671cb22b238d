"""Packages that trackers and optimizers of TrainingArguments need: checked before a run begins."""

from importlib.util import find_spec

from hf_transfer.config.training_arguments import TrainingConfig
from hf_transfer.errors import UserError, unknown

# Value of --report_to -> the modules of which it needs one, and what to install.
TRACKERS: dict[str, tuple[tuple[str, ...], str]] = {
    "azure_ml": (("azureml",), "azureml-core"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "dagshub": (("dagshub",), "dagshub"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "kubeflow": (("kubeflow",), "kubeflow"),
    "mlflow": (("mlflow",), "mlflow"),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
}

# Part of a value of --optim -> the same; the first that fits decides.
OPTIMIZERS: dict[str, tuple[tuple[str, ...], str]] = {
    "adamw_torch_4bit": (("torchao",), "torchao"),
    "adamw_torch_8bit": (("torchao",), "torchao"),
    "galore": (("galore_torch",), "galore-torch"),
    "apollo": (("apollo_torch",), "apollo-torch"),
    "lomo": (("lomo_optim",), "lomo-optim"),
    "grokadamw": (("grokadamw",), "grokadamw"),
    "schedule_free": (("schedulefree",), "schedulefree"),
    "stable_adamw": (("optimi",), "torch-optimi"),
    "anyprecision": (("torchdistx",), "torchdistx"),
    "bit": (("bitsandbytes",), "bitsandbytes"),
    "bnb": (("bitsandbytes",), "bitsandbytes"),
    "ademamix": (("bitsandbytes",), "bitsandbytes"),
    "xla": (("torch_xla",), "torch-xla"),
    "npu": (("torch_npu",), "torch-npu"),
}


def require_packages(training: TrainingConfig) -> None:
    """Raise UserError for a tracker or optimizer that is unknown or not installed.

    So, too, for half precision that the device does not have: Accelerate would compute in 32 bits.
    """
    for tracker in training.report_to or ():
        if tracker not in TRACKERS:
            raise unknown("value of --report_to", tracker, [*TRACKERS, "all", "none"])
        _require("report_to", tracker, TRACKERS[tracker])
    optimizer = str(training.optim.value)
    key = _key_of(optimizer)
    if key:
        _require("optim", optimizer, OPTIMIZERS[key])
    if training.use_liger_kernel and not find_spec("liger_kernel"):
        raise UserError(
            "--use_liger_kernel needs the package liger-kernel, which is not installed",
            "pip install liger-kernel",
        )
    mixed = "fp16" if training.fp16 else str(getattr(training, "mixed_precision", "no"))
    if mixed == "fp16" and training.device.type == "cpu":
        raise UserError("--fp16 needs a GPU, and this run is on the CPU", "leave it out, or --bf16")


def optimizer_package(optimizer: str) -> str | None:
    """The package that a value of --optim needs beside torch and transformers."""
    key = _key_of(optimizer)
    return OPTIMIZERS[key][1] if key else None


def _key_of(optimizer: str) -> str | None:
    return next(filter(optimizer.__contains__, OPTIMIZERS), None)


def _require(flag: str, value: str, needed: tuple[tuple[str, ...], str]) -> None:
    modules, package = needed
    if not any(map(find_spec, modules)):
        raise UserError(
            f"--{flag} {value} needs the package {package}, which is not installed",
            f"pip install {package}",
        )
