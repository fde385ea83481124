import threading

import pytest
import torch

from pipeline.runtime.random_numbers import OwnRandomNumbers
from tests.devices import DEVICES


def draw(numbers, device):
    with numbers:
        return torch.rand(4, device=device).cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_each_training_draws_its_own_sequence_whatever_is_drawn_beside(device):
    generator = torch.Generator(device).manual_seed(3)
    expected = [torch.rand(4, generator=generator, device=device).cpu() for _ in range(3)]
    numbers, other = (OwnRandomNumbers(seed, torch.device(device)) for seed in (3, 4))
    for each in expected:
        assert torch.equal(draw(numbers, device), each)
        assert not torch.equal(draw(other, device), each)
        torch.rand(5, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_restored_state_draws_what_would_have_come_next(device):
    numbers = OwnRandomNumbers(0, torch.device(device))
    draw(numbers, device)
    restored = OwnRandomNumbers(7, torch.device(device))
    restored.load_state_dict(numbers.state_dict())
    assert torch.equal(draw(restored, device), draw(numbers, device))


def test_one_training_draws_at_a_time():
    numbers, is_inside = OwnRandomNumbers(0, torch.device("cpu")), threading.Event()
    with numbers:
        thread = threading.Thread(
            target=lambda: (draw(OwnRandomNumbers(1, torch.device("cpu")), "cpu"), is_inside.set())
        )
        thread.start()
        assert not is_inside.wait(0.05)
    thread.join()
    assert is_inside.is_set()
