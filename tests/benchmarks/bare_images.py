"""What people write today: imagefolder, with_transform, a bare Trainer. Run by test_images.py."""

import json
import sys

import torch
from datasets import load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)


def main(
    images: str, checkpoint: str, output_dir: str, epochs: str, workers: str, batch: str = "16"
) -> None:
    rows = load_dataset("imagefolder", data_dir=images, split="train")
    test = rows.train_test_split(0.2, seed=0)
    train = test["train"].train_test_split(0.15, seed=0)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageClassification.from_pretrained(
        checkpoint, num_labels=4, ignore_mismatched_sizes=True
    )

    def transform(batch: dict) -> dict:
        images = [image.convert("RGB") for image in batch["image"]]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": batch["label"]}

    arguments = TrainingArguments(
        output_dir,
        num_train_epochs=float(epochs),
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=64,
        learning_rate=1e-3,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=int(workers),
        bf16=torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train["train"].with_transform(transform),
        eval_dataset=train["test"].with_transform(transform),
        compute_metrics=lambda found: {
            "accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())
        },
    )
    trained = trainer.train()
    print(json.dumps({"train_runtime": trained.metrics["train_runtime"]}))
    print(trainer.evaluate(test["test"].with_transform(transform)))
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
