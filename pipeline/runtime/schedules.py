"""Learning-rate schedules of the trainings, as functions of the step for torch's `LambdaLR`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR


def warm_up_cosine(step: int, *, max_lr: float, num_warm_up_steps: int, num_steps: int) -> float:
    """Return the learning rate of a step: a linear rise to `max_lr`, then half a cosine to zero at `num_steps`."""
    if step < num_warm_up_steps:
        return max_lr * (step + 1) / num_warm_up_steps
    fraction = (step - num_warm_up_steps) / max(1, num_steps - num_warm_up_steps)
    return max_lr * 0.5 * (1 + math.cos(math.pi * fraction))


def step_decay(step: int, *, lr: float, decay: float, every_steps: int) -> float:
    """Return the learning rate of a step: `lr`, multiplied by `decay` after every `every_steps` steps."""
    return lr * decay ** (step // every_steps)


def schedule(optimiser: torch.optim.Optimizer, rate: Callable[[int], float]) -> LambdaLR:
    """Return torch's schedule that gives step i of `optimiser` the learning rate `rate(i)`.

    `LambdaLR` multiplies the optimiser's own rate, which must be 1 here: then the product is `rate(i)` bit for bit.
    """
    if any(group["lr"] != 1 for group in optimiser.param_groups):
        raise ValueError("the learning rate of a scheduled optimiser must be 1; the schedule gives the rates")
    return LambdaLR(optimiser, rate)
