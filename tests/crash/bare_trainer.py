"""The control: what the documentation of transformers.Trainer shows, and nothing of ours.

bare_trainer.py MODEL DATA OUTPUT_DIR
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict, load_dataset
from kornia.augmentation import RandomAffine
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint


def main(model_name: str, data: str, output_dir: str) -> None:
    set_seed(42)
    texts = data.endswith(".csv")
    rows = _read(data)
    names = rows["train"].features["label"].names
    loader = AutoModelForSequenceClassification if texts else AutoModelForImageClassification
    model = loader.from_pretrained(model_name, num_labels=len(names), ignore_mismatched_sizes=True)
    encoded, collate = _texts(rows, model_name) if texts else _images(rows, model_name)
    arguments = TrainingArguments(
        output_dir=output_dir,
        num_train_epochs=3,
        learning_rate=3e-3,
        per_device_train_batch_size=8,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        seed=42,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["test"],
        data_collator=collate(model),
    )
    last = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()


def _read(data: str) -> DatasetDict:
    if data.endswith(".csv"):
        rows = load_dataset("csv", data_files=data, split="train").rename_columns(
            {"sentence": "text", "animal": "label"}
        )
        rows = rows.class_encode_column("label")
    else:
        rows = load_dataset("imagefolder", data_dir=data, split="train")
    return rows.train_test_split(
        test_size=rows.num_rows - 60 if data.endswith(".csv") else 16, seed=0
    )


def _texts(rows: DatasetDict, model_name: str) -> tuple[DatasetDict, Any]:
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns=["text"])
    return rows, lambda model: DataCollatorWithPadding(tokenizer)


def _images(rows: DatasetDict, model_name: str) -> tuple[DatasetDict, Any]:
    processor = AutoImageProcessor.from_pretrained(model_name)

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch["image"]]
        return {
            "pixel_values": processor(images, return_tensors="pt")["pixel_values"],
            "labels": batch["label"],
        }

    change = RandomAffine(
        degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1), padding_mode="border", p=1.0
    )

    def collate_for(model: torch.nn.Module) -> Any:
        def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = default_data_collator(examples)
            if model.training:
                batch["pixel_values"] = change(batch["pixel_values"])
            return batch

        return collate

    return rows.with_transform(encode), collate_for


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(*sys.argv[1:])
