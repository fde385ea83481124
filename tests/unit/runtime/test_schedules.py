import math

import pytest
import torch

from pipeline.runtime.schedules import schedule, step_decay, warm_up_cosine


def taken(rate, num_steps):
    """Learning rates that an optimiser has at each of its steps."""
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    steps, rates = schedule(optimiser, rate), []
    for _ in range(num_steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        steps.step()
    return rates


@pytest.mark.parametrize("max_lr", [1e-4, 4e-3, 1.3e-2])
@pytest.mark.parametrize(("num_steps", "num_warm_up_steps"), [(100, 10), (97, 6), (1, 1), (2, 1)])
def test_each_step_has_the_rate_of_the_closed_form_bit_for_bit(max_lr, num_steps, num_warm_up_steps):
    def rate(step):
        return warm_up_cosine(step, max_lr=max_lr, num_warm_up_steps=num_warm_up_steps, num_steps=num_steps)

    expected = [max_lr * (step + 1) / num_warm_up_steps for step in range(num_warm_up_steps)]
    num_falling = num_steps - num_warm_up_steps
    expected += [max_lr * 0.5 * (1 + math.cos(math.pi * (step / num_falling))) for step in range(num_falling)]
    assert taken(rate, num_steps) == expected


def test_a_step_decay_multiplies_at_the_end_of_each_period():
    assert taken(lambda step: step_decay(step, lr=1e-2, decay=0.3, every_steps=3), 7) == [
        *[1e-2] * 3,
        *[1e-2 * 0.3] * 3,
        1e-2 * 0.3**2,
    ]


def test_a_schedule_resumes_from_its_state():
    def made():
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimiser, schedule(optimiser, lambda step: 0.1 / (1 + step))

    optimiser, steps = made()
    for _ in range(4):
        optimiser.step()
        steps.step()
    again, resumed = made()
    again.load_state_dict(optimiser.state_dict())
    resumed.load_state_dict(steps.state_dict())
    again.step()
    resumed.step()
    assert again.param_groups[0]["lr"] == 0.1 / 6


def test_an_optimiser_with_a_rate_of_its_own_is_refused():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="must be 1"):
        schedule(optimiser, lambda step: 1.0)
