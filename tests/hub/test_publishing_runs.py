"""From the Hub to the Hub: checkpoint and dataset by id, a run, a push, and what comes back."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.conftest import ROOT
from tests.hub.loopback import Fault, LoopbackHub

Program = Callable[..., str]

RUN = """
import runpy, sys
sys.argv = [recipe, *flags]
try:
    runpy.run_path(recipe, run_name="__main__")
except SystemExit as end:
    print("exit code", end.code)
"""


@pytest.fixture
def source(api: HfApi, repo_id: str, tiny_bert: Path, text_file: Path) -> tuple[str, str]:
    """The ids of a checkpoint (with a card that names its licence) and of a private dataset on the loopback Hub."""
    model, dataset = f"{repo_id}-base", f"{repo_id}-data"
    api.create_repo(model)
    api.upload_folder(repo_id=model, folder_path=tiny_bert)
    card = b"---\nlicense: mit\n---\n# base\n"
    api.upload_file(repo_id=model, path_in_repo="README.md", path_or_fileobj=card)
    api.create_repo(dataset, repo_type="dataset", private=True)
    api.upload_file(
        repo_id=dataset,
        repo_type="dataset",
        path_in_repo="train.csv",
        path_or_fileobj=text_file.read_bytes(),
    )
    return model, dataset


def _flags(source: tuple[str, str], repo_id: str, *more: str) -> list[str]:
    return [
        *(
            "--model_name_or_path",
            source[0],
            "--dataset_name",
            source[1],
            "--label_column",
            "animal",
        ),
        *(
            "--output_dir",
            "run",
            "--max_steps",
            "3",
            "--strategy",
            "head",
            "--use_cpu",
            "--disable_tqdm",
            "true",
        ),
        *("--push_to_hub", "--hub_model_id", repo_id, *more),
    ]


def _recipe(name: str) -> str:
    return str(ROOT / "recipes" / f"{name}.py")


def test_a_run_starts_from_the_hub_and_is_published_private_in_one_commit(
    hub: LoopbackHub, hub_python: Program, source: tuple[str, str], repo_id: str, api: HfApi
) -> None:
    hub.requests.clear()
    flags = _flags(source, repo_id, "--hub_private_repo", "true")
    hub_python(RUN, recipe=_recipe("text_classification"), flags=flags)

    posts = [
        r for r in hub.requests if r.method == "POST" and f"/models/{repo_id}/commit/" in r.path
    ]
    assert [request.status for request in posts] == [200]
    assert [commit.title for commit in hub.commits("model", repo_id)][1:] == [
        "Publish model, record and card"
    ]
    assert api.model_info(repo_id).private

    files = hub.files("model", repo_id)
    assert not [
        name for name in files if name.endswith((".bin", ".pt", ".pkl")) or "checkpoints" in name
    ]
    assert not [name for name, content in files.items() if b"hf_me" in content]
    record = json.loads(files["record.json"])
    assert record["base_model"] == {
        "id": source[0],
        "revision": api.model_info(source[0]).sha,
        "license": "mit",
    }
    assert record["dataset"]["revision"] == api.dataset_info(source[1]).sha
    card = files["README.md"].decode()
    assert f"base_model: {source[0]}" in card
    assert f"- {source[1]}" in card

    answers = hub_python(
        """
        from transformers import pipeline
        classify = pipeline("text-classification", model=model)
        print(list(classify.model.config.id2label.values()))
        print(classify("the cat sleeps")[0]["label"])
        """,
        model=repo_id,
    ).splitlines()
    assert answers[-2] == "['bird', 'cat', 'dog']"
    assert answers[-1] in ("bird", "cat", "dog")


def test_two_processes_push_once(
    hub: LoopbackHub, hub_env: dict[str, str], source: tuple[str, str], repo_id: str, tmp_path: Path
) -> None:
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    settings = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words = [*launch, *settings, _recipe("text_classification"), *_flags(source, repo_id)]
    done = subprocess.run(
        words, env=hub_env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(hub.commits("model", repo_id)) == 2  # the Hub's own first one, and ours
    assert json.loads(hub.files("model", repo_id)["record.json"])["environment"]["processes"] == 2


def test_a_folder_is_pushed_later_and_a_second_push_changes_nothing(
    hub: LoopbackHub, hub_python: Program, source: tuple[str, str], repo_id: str
) -> None:
    train = [
        flag
        for flag in _flags(source, repo_id)
        if flag not in ("--push_to_hub", "--hub_model_id", repo_id)
    ]
    hub_python(RUN, recipe=_recipe("text_classification"), flags=train)
    push = ["--output_dir", "run", "--hub_model_id", repo_id]
    for _ in range(2):
        hub_python(RUN, recipe=_recipe("push_to_hub"), flags=push)
    assert len(hub.commits("model", repo_id)) == 2  # the Hub's own first one, and ours
    assert f'model="{repo_id}"' in hub.files("model", repo_id)["README.md"].decode()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", r"/api/repos/create", status=503),
        Fault("POST", r"/commit/main", status=502),
        Fault("POST", r"/commit/main", drop="before"),
        Fault("POST", r"/commit/main", drop="after"),
    ],
    ids=["create 503", "commit 502", "commit dropped before", "commit dropped after"],
)
def test_a_push_outlasts_a_passing_fault_and_is_still_one_commit(
    hub: LoopbackHub, hub_python: Program, repo_id: str, finished_run: Path, fault: Fault
) -> None:
    hub.faults.append(fault)
    hub_python(
        RUN,
        recipe=_recipe("push_to_hub"),
        flags=["--output_dir", str(finished_run), "--hub_model_id", repo_id],
    )
    assert hub.faults == []
    assert len(hub.commits("model", repo_id)) == 2


def test_what_was_pushed_is_downloaded_again_and_a_difference_is_found(
    hub: LoopbackHub, hub_python: Program, repo_id: str, finished_run: Path
) -> None:
    said = hub_python(
        """
        from pathlib import Path
        from hf_transfer import HubTarget, UserError, push, verify
        folder = Path(folder)
        published = push(folder, HubTarget(repo))
        verify(published, folder)
        (folder / "config.json").write_text("{}")
        try:
            verify(published, folder)
        except UserError as error:
            print(error.message)
        """,
        folder=str(finished_run),
        repo=repo_id,
    )
    assert f"{repo_id} differs from" in said
    assert "config.json" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "me/absent"], "no model 'me/absent' here or on the Hub"),
        (["--dataset_name", "me/absent"], "no dataset 'me/absent' here or on the Hub"),
        (["--model_revision", "v9"], "has no revision 'v9'"),
        (["--hub_token", "hf_wrong"], "no valid Hub token"),
        (["--license", "beerware"], "the Hub refused"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(
    hub_env: dict[str, str],
    hub_python: Program,
    source: tuple[str, str],
    repo_id: str,
    flags: list[str],
    message: str,
) -> None:
    program = "import contextlib, sys\nwith contextlib.redirect_stderr(sys.stdout):\n"
    program += "\n".join(f"    {line}" for line in RUN.strip().splitlines())
    said = hub_python(
        program, recipe=_recipe("text_classification"), flags=_flags(source, repo_id, *flags)
    )
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "exit code 2" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("closed", "message"),
    [({"gated": "manual"}, "is gated"), ({"private": True}, "here or on the Hub")],
    ids=["gated", "private"],
)
def test_a_checkpoint_that_is_closed_to_the_user_is_said_in_one_line(
    closed: dict[str, object],
    message: str,
    hub: LoopbackHub,
    hub_env: dict[str, str],
    tiny_bert: Path,
    text_file: Path,
    tmp_path: Path,
    repo_id: str,
    api: HfApi,
) -> None:
    hub.add_user("they", token="hf_they")
    theirs = f"they/{repo_id.partition('/')[2]}"
    publisher = HfApi(endpoint=api.endpoint, token="hf_they")
    publisher.create_repo(theirs)
    publisher.upload_folder(repo_id=theirs, folder_path=tiny_bert)
    publisher.update_repo_settings(theirs, **closed)
    flags = [
        "--model_name_or_path",
        theirs,
        "--dataset_name",
        str(text_file),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    without_token = {name: value for name, value in hub_env.items() if name != "HF_TOKEN"}
    done = subprocess.run(
        [
            sys.executable,
            _recipe("text_classification"),
            *flags,
            "--label_column",
            "animal",
            "--use_cpu",
        ],
        env=without_token,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def finished_run(
    tmp_path: Path, tiny_bert: Path, recipe: Callable[..., object], text_file: Path
) -> Path:
    """The folder of a small run that was not published."""
    folder = tmp_path / "finished"
    recipe(
        "text_classification",
        *(
            "--model_name_or_path",
            tiny_bert,
            "--dataset_name",
            text_file,
            "--label_column",
            "animal",
        ),
        *(
            "--output_dir",
            folder,
            "--max_steps",
            "2",
            "--strategy",
            "head",
            "--use_cpu",
            "--disable_tqdm",
            "true",
        ),
    )
    return folder


def test_a_metric_that_is_not_ours_comes_from_the_hub(
    hub: LoopbackHub, hub_python: Program
) -> None:
    hub.add_user("evaluate-metric", token="hf_metrics")
    publisher = HfApi(endpoint=hub.url, token="hf_metrics")
    publisher.create_repo("evaluate-metric/share_right", repo_type="space", space_sdk="gradio")
    publisher.upload_file(
        repo_id="evaluate-metric/share_right",
        repo_type="space",
        path_in_repo="share_right.py",
        path_or_fileobj=METRIC.encode(),
    )
    said = hub_python(
        """
        import numpy as np
        from hf_transfer.evaluation.metrics import load_metric
        metric = load_metric("share_right")
        print(metric.score(np.array([0, 1, 1, 0]), np.eye(2)[[0, 1, 0, 0]]))
        """
    )
    assert said.splitlines()[-1] == "0.75"


METRIC = """
import datasets
import evaluate


class ShareRight(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"share_right": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""
