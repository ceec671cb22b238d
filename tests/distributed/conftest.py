"""What starts the processes of one run."""

import pytest

from tests.forked import ForkServer, fork_server


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> ForkServer:
    """What starts recipes as processes."""
    return fork_server(tmp_path_factory.getbasetemp())
