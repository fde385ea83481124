"""What all tests have in common."""

import os
import tempfile
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

ONE_SERVER = ("tests/e2e/test_operations.py", "tests/e2e/test_outages.py")
"""Files whose tests share a Prefect server."""


class ByServer(LoadFileScheduling):
    """The tests of a file run in one process, and so do those of the files that share a server."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return ONE_SERVER[0] if file in ONE_SERVER else file


def pytest_xdist_make_scheduler(config, log):
    return ByServer(config, log)


@pytest.fixture(scope="session")
def in_memory(tmp_path_factory):
    """A folder whose fsyncs cost nothing where the system has one: a killed process does not lose the page cache."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("memory")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def memory_path(in_memory):
    """A folder of a test's own in memory, which goes with it."""
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        yield Path(folder)
