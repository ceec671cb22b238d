"""A Hub on loopback for every test below this folder, and real clients of it.

HF_ENDPOINT is read when huggingface_hub is imported: what goes by it (transformers, datasets, ModelCard) runs in a
subprocess, by `hub_python`. `HfApi` takes its endpoint as an argument, so `api` works in this process.
"""

import itertools
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from tests.hub.loopback import LoopbackHub

TOKEN = "hf_me"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A running Hub with the user "me"."""
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as running:
        running.add_user("me", token=TOKEN)
        yield running


@pytest.fixture(autouse=True)
def _fresh_log(hub: LoopbackHub) -> None:
    hub.requests.clear()
    hub.faults.clear()


@pytest.fixture
def repo_id(request: pytest.FixtureRequest) -> str:
    """A repository name of the test's own, below the user "me"; nothing is created."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_")).strip("-")
    return f"me/{name[:60].strip('-')}-{next(_numbers)}"


@pytest.fixture
def api(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """The real client in this process, as "me". For what uses a cache or HF_ENDPOINT, take `hub_python`."""
    # With hf_xet installed, large files would go to the servers of xet whatever the endpoint says.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def hub_env(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """The whole environment of a subprocess that takes the loopback for the Hub; its cache is empty."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "TRANSF"))
    }
    return inherited | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture
def hub_python(hub_env: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """A function that runs Python source in a subprocess, in `tmp_path`, and returns what it printed.

    `variables` are set in the source beforehand: hub_python("print(name)", name="x"). It fails with the stderr shown.
    """

    def run(source: str, **variables: object) -> str:
        setting = "".join(f"{name} = {value!r}\n" for name, value in variables.items())
        program = setting + textwrap.dedent(source)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=hub_env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            pytest.fail(
                f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False
            )
        return done.stdout

    return run
