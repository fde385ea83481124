"""Networks of a few channels: threads cost them more than they bring, most of all where other processes work."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
