"""Fine-tune a text checkpoint (ModernBERT, DeBERTa, RoBERTa, MiniLM, Qwen, ...) on labelled texts.

    accelerate launch recipes/text_classification.py --config recipes/configs/docstrings.yaml
    accelerate launch recipes/text_classification.py --dataset_name reviews.csv \
        --text_column review --label_column stars --output_dir out/reviews \
        --model_name_or_path answerdotai/ModernBERT-base

A table has one row per text: a column of texts, perhaps a second one (--text_pair_column: question
and answer, premise and hypothesis), and a column of labels.
"""

from hf_transfer import parse_config, run_command


def main() -> None:
    config = parse_config("text-classification")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_transfer import (
        choose_plan,
        evaluate,
        load_checkpoint,
        load_data,
        require_metrics,
        run_plan,
        save,
    )

    # Texts without a character and rows without a label are left out; longer texts than
    # --max_length tokens are truncated when they are tokenized.
    data = load_data(config.data, config.task, config.training.seed)
    require_metrics(config.evaluation.metrics, data.problem_type)

    # AutoModelForSequenceClassification puts its head on the first token, the last, or the mean, by
    # architecture; only the head is new. Encoders and decoders serve.
    checkpoint = load_checkpoint(
        config.model, data, config.training.seed, AutoModelForSequenceClassification, AutoTokenizer
    )

    # For encoders --pooling auto compares linear probes on their own pooling and on the mean over
    # tokens. --strategy contrastive pulls texts of a class together before the head is solved.
    choice = choose_plan(config.transfer, checkpoint, data, config.training, config.cache)
    trained = run_plan(choice.plan, checkpoint, data, config.training, config.cache)

    # --baselines raw_inputs is a logistic regression on words: where it wins, the label is in the
    # vocabulary and not in the meaning.
    record = evaluate(trained, data, config.evaluation, choice)
    save(trained, record, config)


if __name__ == "__main__":
    run_command(main)
