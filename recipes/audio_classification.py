"""Fine-tune a speech or audio checkpoint (wav2vec2, WavLM, Whisper, AST, ...) on labelled sounds.

    accelerate launch recipes/audio_classification.py --config recipes/configs/intents.yaml
    accelerate launch recipes/audio_classification.py --dataset_name sounds \
        --output_dir out/sounds --model_name_or_path microsoft/wavlm-base

`sounds` has a folder of WAV, FLAC, OGG or MP3 files per class, or a table that names its files and
their labels. Needs soundfile and soxr: pip install hf-transfer-learning[audio].
"""

from hf_transfer import parse_config, run_command


def main() -> None:
    config = parse_config("audio-classification")
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    from hf_transfer import (
        choose_plan,
        evaluate,
        load_checkpoint,
        load_data,
        require_metrics,
        run_plan,
        save,
    )

    # Sounds keep their own sampling rate and channels here; files without a sound that can be read
    # are listed in the record. Of long recordings the first --max_seconds count.
    data = load_data(config.data, config.task, config.training.seed)
    require_metrics(config.evaluation.metrics, data.problem_type)

    # The feature extractor names the sampling rate of pretraining: all sounds are resampled to it,
    # in mono. Of Whisper the encoder is used alone.
    checkpoint = load_checkpoint(
        config.model,
        data,
        config.training.seed,
        model_class=AutoModelForAudioClassification,
        processor_class=AutoFeatureExtractor,
    )

    # Sounds of different lengths share a batch where a mask hides the silence behind the shorter
    # ones; where the network answers to that silence, each length is computed by itself.
    choice = choose_plan(config.transfer, checkpoint, data, config.training, config.cache)
    trained = run_plan(choice.plan, checkpoint, data, config.training, config.cache)

    # --baselines raw_inputs is a logistic regression on mean spectra: where it wins, the classes
    # differ in loudness or timbre, and no speech is needed to tell them apart.
    record = evaluate(trained, data, config.evaluation, choice)
    save(trained, record, config)


if __name__ == "__main__":
    run_command(main)
