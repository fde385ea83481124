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
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
