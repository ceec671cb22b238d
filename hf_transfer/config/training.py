"""Flags: how training runs, beside those of transformers' TrainingArguments. Loads no library.

Here stand the flags that are ours, and those of TrainingArguments that have another default or
meaning; `TrainingConfig` (training_arguments.py) has all of them. Where a default is None,
strategies/defaults.py derives it from data and model.
"""

from dataclasses import dataclass
from typing import Literal

from hf_transfer.config.flag import flag
from hf_transfer.config.transfer import STEPPED

Augmentation = Literal["none", "light", "photo"]
Interval = Literal["no", "steps", "epoch"]


@dataclass
class TrainingFlags:
    """The flags of training that are ours or differ from TrainingArguments."""

    _argument_group_name = "training"

    output_dir: str | None = flag(
        None,
        "Output folder of the run. It must not hold another run. Default: below out/, named after "
        "model and data.",
    )
    overwrite_output_dir: bool = flag(False, "Overwrite the content of the output folder.")
    num_train_epochs: float | None = flag(
        None, "Total number of training epochs, of all phases together.", above=0
    )
    learning_rate: float | None = flag(
        None,
        "Peak learning rate of the transferred parameters. Default: from the number of "
        "parameters; halved in the phases that follow a head in closed form.",
        above=0,
    )
    per_device_train_batch_size: int | None = flag(
        None, "Training batch size per device. Default: 16, or 32 from 1,000 examples.", minimum=1
    )
    per_device_eval_batch_size: int = flag(64, "Evaluation batch size per device.", minimum=1)
    warmup_steps: float = flag(
        0.1, "Number of warm-up steps; below 1, their share of the phase.", minimum=0
    )
    weight_decay: float | None = flag(None, "Weight decay of AdamW. Default: 0.01.", minimum=0)
    eval_strategy: Interval = flag(
        "steps", "When to evaluate on the validation split, if there is one."
    )
    eval_steps: float | None = flag(
        None,
        "Number of steps between evaluations; below 1, a share of the phase. Default: 0.1, or more "
        "where all evaluations would take more than a tenth of the operations of training; with "
        "--early_stopping_patience 0.1.",
        above=0,
    )
    dataloader_num_workers: int | None = flag(
        None,
        "Number of processes that load batches. Default: 0, or where images are decoded in every "
        "epoch one per core, at most 8.",
        minimum=0,
    )
    save_minutes: float = flag(
        1.0,
        "Minutes between two training states, saved below checkpoints/ in the output "
        "folder. Saving takes at most 2 percent of the time. 0: only as --save_strategy says, and "
        "when the run is stopped.",
        minimum=0,
    )
    save_strategy: Interval = flag(
        "no",
        "When to save a training state, in addition to --save_minutes: no, steps (every "
        "--save_steps) or epoch.",
    )
    resume: Literal["auto", "never"] = flag(
        "auto", "auto: the same command resumes a run that was stopped; never: it is refused."
    )
    on_nan: Literal["stop", "rollback"] = flag(
        "stop",
        "What to do when a loss or gradient is not finite. stop: end the run; rollback: "
        "skip the step.",
    )
    hub_strategy: str = flag("end", "Only `end`: the model is published once, when verified.")
    logging_nan_inf_filter: bool = flag(False, "Log 0 in place of losses that are not finite.")
    logging_strategy: Interval = flag("epoch", "When to log the training loss.")
    report_to: list[str] = flag(
        default_factory=lambda: ["none"],
        help="Trackers of the run: tensorboard, trackio, wandb, or another one of transformers; "
        "all that are installed; none.",
    )
    train_sampling_strategy: str | None = flag(
        None,
        "Order of the training rows: random, sequential or group_by_length. Default: "
        "group_by_length for texts, otherwise random.",
    )
    pack: bool = flag(
        False,
        "Compute no padding: texts of a batch share rows inside the layers. Where some texts do "
        "not have the same logits both ways, or a CPU would be slower, batches stay padded, and "
        "the log says why.",
        strategies=("contrastive", *STEPPED),
    )
    load_best_model_at_end: bool = flag(
        True,
        "Restore the weights of the step that is best on the validation split, if there is one.",
    )
    metric_for_best_model: str = flag(
        "loss",
        "Metric on the validation split by which steps are compared: loss, or accuracy "
        "(single label).",
    )
    early_stopping_patience: int | None = flag(
        None,
        "Number of evaluations without improvement after which a phase stops.",
        minimum=1,
        strategies=("head", *STEPPED),
    )
    class_weights: Literal["none", "balanced", "sampler"] = flag(
        "none",
        "Weights of the classes. balanced: inverse to their frequency, in the loss; sampler: "
        "training steps draw each class equally often (a head in closed form weighs as balanced).",
    )
    thresholds: Literal["default", "tuned"] = flag(
        "default",
        "Probability above which each of several labels is predicted. default: 0.5; tuned: the one "
        "with the highest F1 of the label on the validation split, or without one, where the head "
        "alone is solved, on held-out folds.",
    )
    # Here and not in the transfer group: pre-training offers them too.
    average_last: float = flag(
        0.0,
        "Average the weights over this share of the last steps of each phase, between 0 and "
        "1; used where it is better on the validation split.",
        minimum=0,
        maximum=1,
        strategies=STEPPED,
    )
    wise_ft: bool = flag(
        False,
        "Interpolate between the weights before and after the phase that trains everything "
        "(WiSE-FT); the best on the validation split are used.",
        strategies=("head_then_full", "gradual", "auto"),
    )
    augmentation: Augmentation = flag(
        "none",
        "Random augmentation of training images, at every step. light: small rotations, "
        "translations and scalings; photo: random crops and flips.",
    )
