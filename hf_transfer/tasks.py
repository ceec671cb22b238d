"""TASKS: a row a task; MODALITIES: a row a kind of input.

What else depends on the kind of input is a table by its name in the room that it belongs to.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_transfer.errors import unknown

if TYPE_CHECKING:  # --help must not wait for transformers
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Modality:
    """A kind of input; its name is that of our column of it."""

    name: str
    noun: str  # an input in messages, card and report
    plain_features: str  # what the baseline raw_inputs reads
    limit: str | None = None  # the flag of the largest size of an input


MODALITIES: dict[str, Modality] = {
    row.name: row
    for row in (
        Modality("image", "image", "pixels"),
        Modality("text", "text", "words (TF-IDF)", limit="max_length"),
        Modality("audio", "sound", "log spectra (mean and spread over time)", limit="max_seconds"),
    )
}


@dataclass(frozen=True)
class Task:
    """A task: its classes in transformers and its usual columns."""

    name: str  # the Hub's pipeline tag
    modality: str  # name of a row of MODALITIES
    auto_class: str
    auto_processor: str
    processor_argument: str  # of transformers.pipeline
    mapping: str  # transformers' table of config class -> model class
    column_names: tuple[str, ...]  # of the input, most usual first

    @property
    def has_images(self) -> bool:
        """Whether the inputs of the task are images."""
        return self.modality == "image"

    @property
    def noun(self) -> str:
        """What an input of the task is called."""
        return MODALITIES[self.modality].noun

    @property
    def labels_words(self) -> bool:
        """Whether an input is a list of words, each with a label of its own."""
        return self.name == "token-classification"

    @property
    def model_class(self) -> Any:
        """AutoModel class of the task."""
        import transformers

        return getattr(transformers, self.auto_class)

    @property
    def processor_class(self) -> Any:
        """Auto class of the task's processor."""
        import transformers

        return getattr(transformers, self.auto_processor)

    def covers(self, config: "PreTrainedConfig") -> bool:
        """Whether transformers has a model class of this task for a model config."""
        import transformers

        return type(config) in getattr(transformers, self.mapping)

    def model_class_name(self, config: "PreTrainedConfig") -> str:
        """Class for a model config that the task covers: the one that it names, or the first."""
        import transformers

        classes = getattr(transformers, self.mapping)[type(config)]
        names = [kind.__name__ for kind in (classes if isinstance(classes, tuple) else (classes,))]
        return next((name for name in config.architectures or () if name in names), names[0])


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="image-classification",
            modality="image",
            auto_class="AutoModelForImageClassification",
            auto_processor="AutoImageProcessor",
            processor_argument="image_processor",
            mapping="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
            column_names=("image", "img", "picture", "photo"),
        ),
        Task(
            name="text-classification",
            modality="text",
            auto_class="AutoModelForSequenceClassification",
            auto_processor="AutoTokenizer",
            processor_argument="tokenizer",
            mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
            column_names=("text", "sentence", "content", "review", "question", "document"),
        ),
        Task(
            name="token-classification",
            modality="text",
            auto_class="AutoModelForTokenClassification",
            auto_processor="AutoTokenizer",
            processor_argument="tokenizer",
            mapping="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
            column_names=("tokens", "words", "text", "sentence"),
        ),
        Task(
            name="audio-classification",
            modality="audio",
            auto_class="AutoModelForAudioClassification",
            auto_processor="AutoFeatureExtractor",
            processor_argument="feature_extractor",
            mapping="MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",
            column_names=("audio", "sound", "speech", "recording", "file"),
        ),
    )
}


def find_task(name: str | Task) -> Task:
    """Row of TASKS with this name, or the row itself. Raises UserError if there is none."""
    if isinstance(name, Task):
        return name
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def model_kinds(config: "PreTrainedConfig") -> list[str]:
    """AutoModelFor* classes, sorted, that have a model class for a model config."""
    from transformers.models.auto import modeling_auto

    return sorted(
        name
        for name, kind in vars(modeling_auto).items()
        if name.startswith("AutoModelFor") and type(config) in kind._model_mapping
    )
