"""Freed memory is kept for the next step.

The C library of Linux gives every freed block of more than 32 MB back to the system, and a new one costs a page fault
for each of its pages: on CPU that takes longer than most operations that fill it.
"""

import ctypes
import functools
import platform
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
TRIM_THRESHOLD, MMAP_MAX = 128 << 10, 65_536  # what they are by default


@functools.cache
def _glibc() -> Any | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory() -> None:
    """From now on the process keeps what it frees; does nothing where the C library is another."""
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Give back what is free, and from now on what will be freed, as the C library does by default."""
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_MAX, MMAP_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        libc.malloc_trim(0)
