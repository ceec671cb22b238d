"""RunConfig: all flags of a run, and which groups of them each kind of recipe offers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer.config.cache import CacheConfig
from hf_transfer.config.card import CardConfig
from hf_transfer.config.data import DataConfig
from hf_transfer.config.evaluation import EvaluationConfig
from hf_transfer.config.hub import HubTarget
from hf_transfer.config.model import ModelConfig
from hf_transfer.config.source_model import SourceModelConfig
from hf_transfer.config.study import StudyConfig
from hf_transfer.config.task import TaskConfig
from hf_transfer.config.training import TrainingFlags
from hf_transfer.config.transfer import ComparedTransferConfig, TransferConfig
from hf_transfer.errors import UserError

if TYPE_CHECKING:  # it loads transformers and torch
    from hf_transfer.config.training_arguments import TrainingConfig

CHECKPOINTS = "checkpoints"  # below the output folder: training states; never published
STUDY_FILE = "study.json"  # of a comparison: its settings
REPORTS = "reports"  # below checkpoints/: what trackers write, TensorBoard's files for one

GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "source_model": SourceModelConfig,
    "task": TaskConfig,
    "data": DataConfig,
    "transfer": TransferConfig,
    "compared_transfer": ComparedTransferConfig,
    "cache": CacheConfig,
    "evaluation": EvaluationConfig,
    "study": StudyConfig,
    "card": CardConfig,
    "training": TrainingFlags,
}
FINE_TUNING = ("model", "data", "transfer", "cache", "evaluation", "card", "training")
PRETRAINING = ("source_model", "task", "data", "evaluation", "card", "training")
COMPARING = (
    *("model", "task", "data", "compared_transfer", "cache", "evaluation", "study", "training"),
)


@dataclass(frozen=True)
class RunConfig:
    """The flags of a run; groups that a recipe does not offer have their defaults.

    `groups` names those that it offers; `task` is the name of a row of TASKS.
    """

    training: "TrainingConfig"
    task: str = TaskConfig.task
    groups: tuple[str, ...] = FINE_TUNING
    model: ModelConfig = field(default_factory=ModelConfig)
    source_model: SourceModelConfig = field(default_factory=SourceModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    card: CardConfig = field(default_factory=CardConfig)

    @property
    def output_dir(self) -> Path:
        """The output folder. Raises UserError if there is none."""
        if self.training.output_dir is None:
            raise UserError("--output_dir is missing", "name a folder")
        return Path(self.training.output_dir)

    @property
    def strategies(self) -> list[str]:
        """The names of the strategies that are run: one, or those of a comparison."""
        if "study" in self.groups:
            return list(self.study.strategies)
        return ["scratch"] if "source_model" in self.groups else [self.transfer.strategy]

    @property
    def hub(self) -> HubTarget | None:
        """Where to push, None without --push_to_hub; the default name is the output folder's."""
        training = self.training
        if not training.push_to_hub:
            return None
        model_id = training.hub_model_id or self.output_dir.resolve().name
        return HubTarget(
            model_id, training.hub_private_repo, training.hub_token, training.hub_revision
        )
