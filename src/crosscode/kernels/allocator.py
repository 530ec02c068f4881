"""Freed memory is kept for the next step.

The C library of Linux gives every freed block of more than 32 MB back to the system, and a new one costs a page fault
for each of its pages: on CPU that takes longer than most operations that fill it.
"""

import ctypes
import functools
import math
import platform
import sys
import threading
from typing import Any

import attrs
import torch
from torch import Tensor

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


@attrs.define(eq=False)
class ReusedMemory:
    """Memory of one CPU tensor after another: a new one is laid where the last one was, once nobody holds that.

    Who makes a large tensor in each round of a loop is spared the page faults, whoever calls, in training or not.
    """

    _block: bytearray = attrs.field(factory=bytearray, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def bytes(self, n: int) -> memoryview:
        """`n` bytes of whatever was there, for a file to be read into."""
        return memoryview(self._of(n))[:n]

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor of whatever was there."""
        n = math.prod(shape)
        if n == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._of(n * dtype.itemsize), dtype=dtype, count=n).view(shape)

    def _of(self, n: int) -> bytearray:
        with self._lock:
            # Two references, the attribute and the argument: no tensor, nor any view of one, holds the block.
            if len(self._block) < n or sys.getrefcount(self._block) > 2:
                self._block = bytearray(n)
            taken = self._block
        return taken
