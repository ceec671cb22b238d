from collections.abc import Callable


def test_tables_of_a_dataset_on_the_hub_keep_the_text_of_their_cells(
    hub_python: Callable[..., str], repo_id: str
) -> None:
    source = """
        from huggingface_hub import HfApi
        from hf_transfer import load_data
        from hf_transfer.config.data import DataConfig
        table = {"repo_id": repo_id, "repo_type": "dataset"}
        HfApi().create_repo(**table)
        for split, first in (("train", 0), ("test", 40)):
            lines = [f"text {n},{('NA', '007')[n % 2]}" for n in range(first, first + 40)]
            content = "\\n".join(["text,label", *lines]).encode()
            HfApi().upload_file(
                **table, path_or_fileobj=content, path_in_repo=f"data/{split}.csv"
            )
        data = load_data(DataConfig(repo_id), "text-classification", 0)
        print(data.labels, len(data.train), len(data.test), len(data.origin.revision))
    """
    assert hub_python(source, repo_id=repo_id).split() == ["('007',", "'NA')", "40", "40", "40"]


def test_files_of_sounds_on_the_hub_are_read_by_class_folder(
    hub_python: Callable[..., str], repo_id: str
) -> None:
    source = """
        from huggingface_hub import HfApi
        from hf_transfer import load_data
        from hf_transfer.config.data import DataConfig
        from tests.sounds import encoded, tone
        table = {"repo_id": repo_id, "repo_type": "dataset"}
        HfApi().create_repo(**table)
        for number in range(12):
            name = f"{('high', 'low')[number % 2]}/{number}.wav"
            content = encoded(tone(200, 0.1))["bytes"]
            HfApi().upload_file(**table, path_or_fileobj=content, path_in_repo=name)
        data = load_data(DataConfig(repo_id), "audio-classification", 0)
        print(data.labels, len(data.train) + len(data.test), len(data.origin.revision))
    """
    assert hub_python(source, repo_id=repo_id).split() == ["('high',", "'low')", "12", "40"]
