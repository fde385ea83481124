"""What keeps unit tests quick: folders in memory, and one thread for networks of a few channels."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

ON_ONE_THREAD = ("models", "pretraining")


@pytest.fixture(scope="session")
def in_memory(tmp_path_factory):
    """A folder whose fsyncs cost nothing where the system has one: a killed process does not lose the page cache."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("memory")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(in_memory):
    """A folder of a test's own, which goes with it."""
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def few_threads(request):
    """Threads cost small networks more than they bring, most of all where other processes work."""
    if request.path.parent.name not in ON_ONE_THREAD:
        yield
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
