"""Memory: the process keeps the memory that a batch has freed for the next batch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache

# of malloc.h, and their value: only more freed bytes are returned to the system
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 2**31 - 1
# glibc before 2.35 accepts only the second
_LARGEST = (2**30, 2**25)
# environment variables with which users set this
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


@cache
def keep_memory() -> bool:
    """Let the C library keep freed memory instead of returning it to the system; returns whether it does.

    A network on a CPU frees and allocates gigabytes per step, and new pages can cost as much time as the arithmetic.
    The whole process then keeps its peak memory, which is about a tenth higher. Only for glibc (Linux), and only if the
    user has not set malloc's variables. Source: mallopt(3).
    """
    # on Windows libc_ver opens Python's executable, which may not be readable
    linux = sys.platform == "linux"
    if not linux or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return False
    library = ctypes.CDLL(None)
    taken = any(library.mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
    return taken and bool(library.mallopt(_TRIM_THRESHOLD, _KEPT))
