"""Orders that are functions of counters: shuffling with nothing to save.

Every permutation comes from a generator seeded by (seed, purpose, epoch, index), so the position in a shuffled stream
is a few integers, and any part of it can be made again without what came before.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

T = TypeVar("T")


def permutation(n: int, *counters: int | str) -> Int[Tensor, " N"]:
    """A permutation of range(n) that depends on the counters only, equal on every device and in every process."""
    digest = hashlib.sha256(repr(counters).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.randperm(n, generator=generator)


def shuffled_in_blocks(items: Iterable[T], block_size: int, *counters: int | str, first_block: int = 0) -> Iterator[T]:
    """The items, each block of `block_size` in a random order of its own; `items` starts with block `first_block`."""
    stream, block = iter(items), first_block
    while members := list(islice(stream, block_size)):
        yield from (members[i] for i in permutation(len(members), *counters, block).tolist())
        block += 1


def unit_order(
    n_previous: int, n_current: int, seed: int, epoch: int, unit: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Which tokens of blocks `unit - 1` and `unit` are served in this unit, and in which order.

    Served are the second half of the previous block's own permutation and the first half of the current block's, mixed:
    so every token of the stream is served exactly once, neighbouring blocks mix, and two blocks are all that is held.

    Returns:
        Two tensors of equal length: 0 for the previous block or 1 for the current one, and the index in that block.
    """
    previous_N = permutation(n_previous, seed, "block", epoch, unit - 1)[n_previous // 2 :]
    current_N = permutation(n_current, seed, "block", epoch, unit)[: n_current // 2]
    which_N = torch.cat([torch.zeros_like(previous_N), torch.ones_like(current_N)])
    order_N = permutation(len(which_N), seed, "unit", epoch, unit)
    return which_N[order_N], torch.cat([previous_N, current_N])[order_N]
