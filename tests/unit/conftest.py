"""What keeps unit tests quick: one thread for networks of a few channels."""

import pytest

ON_ONE_THREAD = ("models", "pretraining")


@pytest.fixture(autouse=True)
def few_threads(request):
    """Threads cost small networks more than they bring, most of all where other processes work."""
    if request.path.parent.name not in ON_ONE_THREAD:
        yield
        return
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
