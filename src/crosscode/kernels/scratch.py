"""Memory that is used again at the next step.

The C library gives every freed block of more than 32 MB back to the system; a new one costs a page fault for each of
its pages, which on CPU takes longer than most operations that fill it.
"""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_buffers = threading.local()


def scratch(name: str, shape: Sequence[int], like: Tensor) -> Tensor | None:
    """Uninitialised memory, the same at every call with this name; None where it would gain nothing.

    What is written there is lost at the next call, so it must never leave the function that asked for it.
    """
    n_elements = math.prod(shape)
    if like.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    held = getattr(_buffers, name, None)
    if held is None or len(held) < n_elements or held.dtype != like.dtype:
        held = torch.empty(n_elements, dtype=like.dtype)
        setattr(_buffers, name, held)
    return held[:n_elements].view(shape)


def release() -> None:
    """Give this thread's memory back."""
    _buffers.__dict__.clear()
