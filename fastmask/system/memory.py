"""The process's memory: what a batch has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache

# of malloc.h, and what they are set to: freed memory is given back only above these bytes
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 2**31 - 1
# glibc before 2.35 takes no more than the second
_LARGEST = (2**30, 2**25)
# by these a user has had a say already
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


@cache
def keep_memory() -> bool:
    """Let the C library keep freed memory instead of giving it back to the system; returns whether it does.

    A network on a CPU frees and takes gigabytes a step, and the system's fresh pages cost up to as much time as the
    arithmetic. It holds for the whole process, which then keeps what it once had, at its peak about a tenth more, and
    is for glibc (Linux); elsewhere, and where the user has set malloc's own variables, nothing is changed. Source:
    mallopt(3).
    """
    # on Windows libc_ver opens Python's executable, which some users may not read
    linux = sys.platform == "linux"
    if not linux or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return False
    library = ctypes.CDLL(None)
    taken = any(library.mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST)
    return taken and bool(library.mallopt(_TRIM_THRESHOLD, _KEPT))
