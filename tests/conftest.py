"""What all tests have in common."""

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.processes import start_fork_server

ONE_SERVER = ("tests/e2e/test_operations.py", "tests/e2e/test_outages.py")
"""Files whose tests share a Prefect server."""


class ByServer(LoadFileScheduling):
    """The tests of a file run in one process, and so do those of the files that share a server."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return ONE_SERVER[0] if file in ONE_SERVER else file


def pytest_xdist_make_scheduler(config, log):
    return ByServer(config, log)


@pytest.fixture(scope="session", autouse=True)
def fork_server():
    """Start the fork server in a folder that stays: tests change theirs, and it is removed after them."""
    start_fork_server()
