"""The loopback Hub is judged by the real clients: what they believe of it is what the other tests rely on."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.loopback import Fault, LoopbackHub

WEIGHTS = bytes(range(256)) * 40


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_a_commit_publishes_regular_and_lfs_files_together(
    hub: LoopbackHub, api: HfApi, repo_id: str
) -> None:
    url = api.create_repo(repo_id)
    operations = [
        add("model.safetensors", WEIGHTS),
        add("a/config.json", b"{}"),
        add("README.md", b"# Hello"),
    ]
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit = api.create_commit(repo_id, operations, commit_message="all of it")

    assert hub.files("model", repo_id) == {
        "README.md": b"# Hello",
        "a/config.json": b"{}",
        "model.safetensors": WEIGHTS,
    }
    assert [c.title for c in hub.commits("model", repo_id)] == ["initial commit", "all of it"]
    assert hub.commits("model", repo_id)[-1].oid == commit.oid == api.model_info(repo_id).sha
    assert (url.repo_id, hub.count("PUT", "/lfs/")) == (repo_id, 1)
    assert {
        f.path: bool(f.lfs)
        for f in api.list_repo_tree(repo_id, recursive=True)
        if hasattr(f, "lfs")
    } == {
        ".gitattributes": False,
        "README.md": False,
        "a/config.json": False,
        "model.safetensors": True,
    }


def test_what_has_not_changed_is_neither_sent_nor_committed_again(
    hub: LoopbackHub, api: HfApi, repo_id: str
) -> None:
    api.create_repo(repo_id)
    files = {"model.bin": WEIGHTS, "config.json": b"{}"}
    first = api.create_commit(
        repo_id, [add(*file) for file in files.items()], commit_message="first"
    )
    again = api.create_commit(
        repo_id, [add(*file) for file in files.items()], commit_message="second"
    )

    assert again.oid == first.oid
    assert (hub.count("PUT", "/lfs/"), hub.count("POST", "/commit/")) == (1, 1)


def test_files_and_folders_can_be_deleted(hub: LoopbackHub, api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id)
    api.create_commit(
        repo_id, [add(path, b"x") for path in ("a/1", "a/b/2", "ab/3", "4")], commit_message="four"
    )
    api.create_commit(
        repo_id, [CommitOperationDelete("a/"), CommitOperationDelete("4")], commit_message="less"
    )

    assert hub.files("model", repo_id) == {"ab/3": b"x"}
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        api.delete_file("4", repo_id)


def test_a_private_repository_is_hidden_from_others(
    hub: LoopbackHub, api: HfApi, repo_id: str
) -> None:
    hub.add_user("other", token="hf_other")
    api.create_repo(repo_id, private=True)

    assert api.model_info(repo_id).private
    for token, status in ((False, 401), ("hf_other", 404)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            api.model_info(repo_id, token=token)
        assert refused.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        api.model_info(repo_id, token="hf_wrong")
    assert refused.type is HfHubHTTPError


def test_a_gated_repository_shows_its_page_but_not_its_files(
    hub: LoopbackHub, api: HfApi, repo_id: str, tmp_path: Path
) -> None:
    hub.add_user("other", token="hf_other")
    api.create_repo(repo_id)
    api.update_repo_settings(repo_id, gated="manual")

    assert api.model_info(repo_id, token="hf_other").gated == "manual"
    for token, status in ((False, 401), ("hf_other", 403)):
        with pytest.raises(GatedRepoError) as refused:
            api.hf_hub_download(repo_id, ".gitattributes", token=token, cache_dir=tmp_path)
        assert refused.value.response.status_code == status
    api.auth_check(repo_id)


def test_only_an_owner_with_a_token_to_write_may_write(
    hub: LoopbackHub, api: HfApi, repo_id: str
) -> None:
    hub.add_user("other", token="hf_other")
    hub.add_user("me", token="hf_me_read", role="read")
    api.create_repo(repo_id)

    for token in ("hf_other", "hf_me_read"):
        with pytest.raises(HfHubHTTPError, match=r"403 Forbidden.*right"):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo_id, token=token)
    assert hub.files("model", repo_id) == {}


def test_a_taken_name_an_absent_revision_and_a_disabled_repository_have_their_errors(
    hub: LoopbackHub, api: HfApi, repo_id: str
) -> None:
    url = api.create_repo(repo_id)

    assert api.create_repo(repo_id, exist_ok=True) == url
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(repo_id)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo_id, revision="v9")
    hub.disable("model", repo_id)
    with pytest.raises(DisabledRepoError):
        api.model_info(repo_id)


def test_branches_and_tags_name_commits(api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id, repo_type="dataset")
    kind = {"repo_id": repo_id, "repo_type": "dataset"}
    first = api.dataset_info(repo_id).sha
    api.create_branch(**kind, branch="pr/1")
    api.create_tag(**kind, tag="v1")
    second = api.upload_file(**kind, path_or_fileobj=b"x", path_in_repo="x", revision="pr/1").oid

    refs = api.list_repo_refs(**kind)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": first, "pr/1": second}
    assert [commit.commit_id for commit in api.list_repo_commits(**kind, revision="pr/1")] == [
        second,
        first,
    ]
    assert api.file_exists(**kind, filename="x", revision="pr/1")
    assert not api.file_exists(**kind, filename="x", revision="v1")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(
            **kind, path_or_fileobj=b"y", path_in_repo="y", revision="pr/1", parent_commit=first
        )
    api.delete_branch(**kind, branch="pr/1")
    api.delete_tag(**kind, tag="v1")
    assert len(api.list_repo_refs(**kind).branches) == 1


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ("license: my-own", '"license" must be one of'),
        ("license: [mit", "YAML Metadata Error"),
        ("base_model: ./out/best", '"base_model" with value "./out/best" is not valid'),
        (
            "model-index: [{name: x, results: [{task: {type: y}}]}]",
            r'results\[0\].dataset.type" is required',
        ),
    ],
)
def test_a_bad_card_refuses_the_whole_commit(
    hub: LoopbackHub, api: HfApi, repo_id: str, metadata: str, error: str
) -> None:
    api.create_repo(repo_id)
    card = f"---\n{metadata}\n---\n# Card".encode()

    with pytest.raises(ValueError, match=error):
        api.create_commit(repo_id, [add("README.md", card), add("x", b"x")], commit_message="bad")
    assert hub.files("model", repo_id) == {}


def test_faults_hit_as_often_as_they_are_told(hub: LoopbackHub, api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id)
    send = {"path_or_fileobj": WEIGHTS, "path_in_repo": "model.bin", "repo_id": repo_id}
    hub.faults.append(Fault("PUT", "/lfs/", status=503))
    hub.faults.append(Fault("POST", "/commit/", drop="before"))
    hub.faults.append(Fault("POST", "/commit/", drop="after"))

    with pytest.raises(Exception, match="disconnected"):
        api.upload_file(**send)
    assert [r.status for r in hub.requests if r.method == "PUT"] == [503, 200]
    assert len(hub.commits("model", repo_id)) == 1
    with pytest.raises(Exception, match="disconnected"):
        api.upload_file(**send)
    assert len(hub.commits("model", repo_id)) == 2
    assert hub.faults == []


def test_a_cut_download_is_resumed_where_it_stopped(
    hub: LoopbackHub, api: HfApi, repo_id: str, tmp_path: Path
) -> None:
    api.create_repo(repo_id)
    large = WEIGHTS * 1100
    api.upload_file(path_or_fileobj=large, path_in_repo="model.bin", repo_id=repo_id)
    hub.faults.append(Fault("GET", "/resolve/", cut=len(large) - 1))

    assert Path(api.hf_hub_download(repo_id, "model.bin", cache_dir=tmp_path)).read_bytes() == large
    assert [r.status for r in hub.requests if r.method == "GET" and "/resolve/" in r.path] == [
        200,
        206,
    ]


def test_a_deleted_repository_is_gone_and_a_kept_one_survives_a_restart(tmp_path: Path) -> None:
    for turn in ("first", "second"):
        with LoopbackHub(tmp_path) as hub:
            hub.add_user("me", token="hf_me")
            api = HfApi(endpoint=hub.url, token="hf_me")
            assert api.repo_exists("me/kept") == (turn == "second")
            api.create_repo("me/kept", exist_ok=True)
            api.create_repo("me/gone", repo_type="space", space_sdk="static")
            api.delete_repo("me/gone", repo_type="space")
            assert not api.repo_exists("me/gone", repo_type="space")


def test_a_pushed_dataset_is_loaded_again(
    hub: LoopbackHub, hub_python: Callable[..., str], repo_id: str
) -> None:
    source = """
        from datasets import Dataset, load_dataset
        from huggingface_hub import HfApi
        rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
        rows.push_to_hub(repo_id, private=True)
        print(load_dataset(repo_id, split="train").to_dict() == rows.to_dict())
        print(next(iter(load_dataset(repo_id, split="train", streaming=True)))["text"])
        table = {"repo_id": repo_id + "-csv", "repo_type": "dataset"}
        HfApi().create_repo(**table)
        HfApi().upload_file(**table, path_or_fileobj=b"text,label\\nd,1\\n", path_in_repo="train.csv")
        print(load_dataset(table["repo_id"])["train"][0])
    """
    assert hub_python(source, repo_id=repo_id).splitlines() == [
        "True",
        "a",
        "{'text': 'd', 'label': 1}",
    ]
    assert set(hub.files("dataset", repo_id)) == {"README.md", "data/train-00000-of-00001.parquet"}


def test_a_pushed_model_is_loaded_again(
    hub: LoopbackHub, hub_python: Callable[..., str], repo_id: str
) -> None:
    source = """
        from pathlib import Path
        import torch
        from huggingface_hub import snapshot_download
        from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer
        tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        model = BertModel(BertConfig(vocab_size=9, **tiny))
        model.push_to_hub(repo_id, private=True)
        Path("vocab.txt").write_text("[PAD]\\n[UNK]\\n[CLS]\\n[SEP]\\n[MASK]\\nhello\\n")
        BertTokenizer("vocab.txt").push_to_hub(repo_id)
        again = AutoModel.from_pretrained(repo_id)
        print(all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)))
        print(AutoTokenizer.from_pretrained(repo_id)("hello")["input_ids"])
        print(sorted(path.name for path in Path(snapshot_download(repo_id)).iterdir()))
    """
    same, tokens, names = hub_python(source, repo_id=repo_id).splitlines()
    assert (same, tokens) == ("True", "[2, 5, 3]")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(
        hub.files("model", repo_id)
    )
    assert "model.safetensors" in names
