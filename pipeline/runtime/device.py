"""Check the requested device, and run networks with results that do not depend on threads or cuDNN's choices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
import torch

from pipeline.errors import ConfigError
from pipeline.runtime.prefetch import prefetch_map

logger = logging.getLogger("fantrans")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def map_batches(forward: Callable[[_In], _Out], batches: Iterable[_In], device: torch.device) -> Iterator[_Out]:
    """Yield `forward(batch)` for each batch, in order.

    On a CPU, as many batches run at once as torch has threads, each on one thread. A kernel that splits one batch among
    threads would round differently on machines with other numbers of cores.
    """
    if device.type != "cpu":
        yield from map(forward, batches)
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _, future in prefetch_map(forward, batches, num_threads=num_threads):
            yield future.result()
    finally:
        torch.set_num_threads(num_threads)


def pad_batch(values: np.ndarray, size: int) -> np.ndarray:
    """Return `values` (n, ...) contiguous in memory, with the last one repeated up to (size, ...).

    Kernels, and with them the last bits of a result, are chosen by the shape of a batch: batches of one size give the
    same bytes for an item whatever the number of items.
    """
    num_missing = size - len(values)
    if num_missing <= 0:
        return np.ascontiguousarray(values)
    return np.concatenate((values, np.repeat(values[-1:], num_missing, 0)))


def exact_convolutions() -> AbstractContextManager[None]:
    """Return a context in which cuDNN convolves without TF32 and deterministically."""
    # without `enabled=True` this context switches cuDNN off
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


AUTO = "auto"
"""The device that `choose_device` replaces by CUDA where torch sees it, else by the CPU."""


def choose_device(device: str) -> str:
    """Return the device to work on, and log the choice if `device` is "auto"; other devices as `checked_device`."""
    if device != AUTO:
        return checked_device(device)
    chosen = "cuda" if torch.cuda.device_count() else "cpu"
    logger.info("device: %s (auto)", chosen)
    return chosen


def checked_device(device: str) -> str:
    """Return `device`; raises `ConfigError` if torch does not know it or this machine does not have it."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not known; expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices; pass --device cpu"
        )
    return device
