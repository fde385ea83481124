"""Keep glibc from returning large buffers to the kernel, which zeroes every page that it hands out again."""

from __future__ import annotations

import ctypes
import platform
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_INT = 2**31 - 1


def tune_allocator() -> None:
    """Have this process keep and reuse the memory that it frees; call it before work on a CPU starts.

    A no-op where the C library is not glibc. Values that the user has exported (MALLOC_MMAP_THRESHOLD_ and
    MALLOC_TRIM_THRESHOLD_) are replaced.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, _MAX_INT)
