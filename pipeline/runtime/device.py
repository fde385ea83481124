"""The device that somebody asked for, if it is there; never another one in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
import torch

from pipeline.errors import ConfigError
from pipeline.runtime.prefetch import prefetch_map

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def map_batches(forward: Callable[[_In], _Out], batches: Iterable[_In], device: torch.device) -> Iterator[_Out]:
    """`map` of a network over batches.

    On a CPU as many run at once as torch has threads, each on one: a kernel that shares a batch among threads rounds by
    their number, and the bytes of a cache must not depend on how many cores a machine, or a worker, has.
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
    """Convolutions of a GPU in the arithmetic that is asked for, and the same at every call."""
    # cuDNN is switched off by whoever leaves `enabled` out
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def checked_device(device: str) -> str:
    """`device` itself; a `ConfigError` if torch does not know it or this machine does not have it."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"there is no device {device!r}; expected cpu, cuda or cuda:N")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices; give --device cpu"
        )
    return device
