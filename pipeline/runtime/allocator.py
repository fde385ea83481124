"""Make glibc reuse freed memory instead of returning it to the kernel, which would zero every page again."""

from __future__ import annotations

import ctypes
import platform
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def tune_allocator() -> None:
    """Have this process keep freed memory, in one arena for all threads; call it before work starts.

    Batches and maps are large buffers, which glibc maps and unmaps one by one by default. Only speed changes, see
    `benchmarks/allocator.py`. Does nothing where the C library is not glibc.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Return freed memory to the kernel, so that hours of work need no more of it than minutes do.

    Blocks of many sizes in one arena leave more and more free memory between them. Costs as much time as touching the
    memory again. Does nothing where the C library is not glibc.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None
