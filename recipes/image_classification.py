"""Fine-tune an image checkpoint (ViT, DINOv2, ResNet, ConvNeXt, Swin, ...) on labelled images.

    accelerate launch recipes/image_classification.py --config recipes/configs/digits.yaml
    accelerate launch recipes/image_classification.py --dataset_name pets --output_dir out/pets \
        --model_name_or_path google/vit-base-patch16-224-in21k

`pets` is a folder with one folder of images per class, or with train/ and test/ above these; or a
dataset with a column of images and one of labels. Labels that are numbers to estimate (a price, an
age) need --problem_type regression, lists of tags give a multi-label classifier.
"""

from hf_transfer import parse_config, run_command


def main() -> None:
    config = parse_config("image-classification")
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from hf_transfer import (
        choose_plan,
        evaluate,
        load_checkpoint,
        load_data,
        load_preparation,
        require_metrics,
        run_plan,
        save,
    )

    # Every image is decoded once, here: those that cannot be read are left out and listed in the
    # record, the others are kept as the processor brings them to the size of pretraining.
    preparation = load_preparation(config.model, config.task, config.cache, AutoImageProcessor)
    data = load_data(config.data, config.task, config.training.seed, preparation)
    require_metrics(config.evaluation.metrics, data.problem_type)

    # The head is new, whatever the checkpoint knew: 21,000 classes of ImageNet do not fit 37
    # breeds. The processor normalises images as in pretraining.
    checkpoint = load_checkpoint(
        config.model,
        data,
        config.training.seed,
        AutoModelForImageClassification,
        AutoImageProcessor,
    )

    # Few images per class: the head alone, then everything. --augmentation photo or light changes
    # images at random in the phases that run the whole network; frozen layers run once.
    choice = choose_plan(config.transfer, checkpoint, data, config.training, config.cache)
    trained = run_plan(choice.plan, checkpoint, data, config.training, config.cache)

    # Once, on test images that nothing was chosen by; --baselines raw_inputs adds a logistic
    # regression on grey levels.
    record = evaluate(trained, data, config.evaluation, choice)
    save(trained, record, config)


if __name__ == "__main__":
    run_command(main)
