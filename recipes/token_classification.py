"""Fine-tune a text checkpoint to give every word a tag: entities, parts of speech, kinds of names.

    hf-transfer run token_classification --config identifiers.yaml
    hf-transfer run token_classification --dataset_name tags.jsonl --output_dir out/tags \
        --model_name_or_path answerdotai/ModernBERT-base

Each row is a sentence: a list of words and a list of tags, in JSON Lines, CoNLL files (.conll) or a
dataset of the Hub; or a text with marked spans. Tags like B-PER, I-PER and O mark entities.
"""

from hf_transfer import parse_config, run_command


def main() -> None:
    config = parse_config("token-classification")
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from hf_transfer import choose_plan, evaluate, load_checkpoint, load_data, run_plan, save
    from hf_transfer import load_tag_metrics as require_tag_metrics

    seed = config.training.seed
    # A row whose words and tags differ in number is left out and listed in the record.
    data = load_data(config.data, config.task, seed)
    require_tag_metrics(config.evaluation.metrics, data.labels)

    # The head reads every token; the first one of a word answers for it. Rows that are longer than
    # --max_length tokens go through in windows, which share some words as context.
    classes = (AutoModelForTokenClassification, AutoTokenizer)
    checkpoint = load_checkpoint(config.model, data, seed, *classes)

    # A head alone is solved on the features of all words, its penalty by folds of sentences.
    choice = choose_plan(config.transfer, checkpoint, data, config.training, config.cache)
    trained = run_plan(choice.plan, checkpoint, data, config.training, config.cache)

    # Entities count where all their words and the type are right; intervals are over sentences.
    # --baselines raw_inputs knows which word it is, and nothing of the words around it.
    save(trained, evaluate(trained, data, config.evaluation, choice), config)


if __name__ == "__main__":
    run_command(main)
