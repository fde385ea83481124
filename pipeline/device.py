"""The device that somebody asked for, if it is there; never another one in its place."""

from __future__ import annotations

import torch

from pipeline.errors import ConfigError


def checked_device(device: str) -> str:
    """`device` itself; a `ConfigError` if torch does not know it or this machine does not have it."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"there is no device {device!r}; expected cpu, cuda or cuda:N")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
                          "give --device cpu")
    return device
