"""The C library is asked to keep freed memory while training, and to give it back afterwards."""

import os
import platform
from pathlib import Path

import pytest
import torch

from crosscode.kernels.allocator import keep_freed_memory, return_freed_memory

SIZE = 256 << 20


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def resident_after_freeing() -> int:
    """Bytes that stay resident of a large tensor that was made and freed."""
    before = resident()
    torch.ones(SIZE, dtype=torch.uint8)
    return resident() - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is a function of glibc")
def test_freed_memory_is_kept_and_then_returned() -> None:
    """By default a freed tensor goes back to the system; in between it stays; afterwards it goes back again."""
    assert resident_after_freeing() < SIZE // 4
    keep_freed_memory()
    try:
        assert resident_after_freeing() > SIZE // 2
    finally:
        return_freed_memory()
    assert resident_after_freeing() < SIZE // 4
