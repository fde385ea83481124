"""What all tests have in common."""

import os
import shutil

from xdist.scheduler import LoadFileScheduling

ONE_SERVER = ("tests/e2e/test_operations.py", "tests/e2e/test_outages.py")
"""Files whose tests share a Prefect server."""
MEMORY = "/dev/shm"
LEAST_FREE_BYTES = 8 * 2**30


class ByServer(LoadFileScheduling):
    """The tests of a file run in one process, and so do those of the files that share a server."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return ONE_SERVER[0] if file in ONE_SERVER else file


def pytest_xdist_make_scheduler(config, log):
    return ByServer(config, log)


def pytest_configure():
    """Let the tests write to memory if the system has room there: many would wait for a disk most of their time.

    A killed process loses nothing that it handed to the kernel, there or on a disk. tests/e2e have a disk.
    """
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > LEAST_FREE_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
