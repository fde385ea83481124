"""The heads of the paper by name: the rows of Table 1, each built on the contract of `models.head`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from models.fan_trans import FanTransHead
from models.variants import VARIANTS

HEADS: dict[str, Callable[..., nn.Module]] = {
    name: partial(FanTransHead.from_inputs, variant=name) for name in VARIANTS
}
"""Functions of `HeadInputs` and arguments that return a head; one of your own needs no entry (docs/heads.md)."""
