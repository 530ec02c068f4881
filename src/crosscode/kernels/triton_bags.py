"""The products of `sparse.py` on a GPU. Only this file imports triton.

Two kernels are enough, because decoding and both weight gradients are bags, the latter over the transposed pattern.
Sums are taken in the order of the entries, without atomics: the same bits every time.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from crosscode.kernels.pattern import Pattern

AT_ONCE = 16  # entries read together, so that their loads overlap
WIDEST = 512  # columns of a tile


@triton.jit  # type: ignore
def _bag(matrix, indices, offsets, values, out, width, total_type: tl.constexpr, N: tl.constexpr, W: tl.constexpr):  # type: ignore
    """out[row] = sum of values[n] * matrix[indices[n]] over the row's entries n; a program for each row and tile."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * W + tl.arange(0, W)
    inside = columns < width
    total = tl.zeros([W], dtype=total_type)
    last = tl.load(offsets + row + 1)
    for first in range(tl.load(offsets + row), last, N):
        entries = first + tl.arange(0, N)
        live = entries < last
        rows = tl.load(indices + entries, mask=live, other=0)
        weights = tl.load(values + entries, mask=live, other=0.0).to(total_type)
        places = matrix + rows[:, None] * width + columns[None, :]
        tile = tl.load(places, mask=live[:, None] & inside[None, :], other=0.0).to(total_type)
        total += tl.sum(weights[:, None] * tile, axis=0)
    tl.store(out + row * width + columns, total, mask=inside)


@triton.jit  # type: ignore
def _sample(left, right, rows, indices, out, n, width, total_type: tl.constexpr, N: tl.constexpr, W: tl.constexpr):  # type: ignore
    """out[n] = <left[rows[n]], right[indices[n]]>; one program a few entries."""
    entries = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    live = entries < n
    left_rows = tl.load(rows + entries, mask=live, other=0)[:, None] * width
    right_rows = tl.load(indices + entries, mask=live, other=0)[:, None] * width
    total = tl.zeros([N], dtype=total_type)
    for first in range(0, width, W):
        columns = first + tl.arange(0, W)
        inside = live[:, None] & (columns < width)[None, :]
        a = tl.load(left + left_rows + columns[None, :], mask=inside, other=0.0).to(total_type)
        b = tl.load(right + right_rows + columns[None, :], mask=inside, other=0.0).to(total_type)
        total += tl.sum(a * b, axis=1)
    tl.store(out + entries, total, mask=live)


def _total_type(tensor: Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def bag_rows(matrix_LO: Float[Tensor, "L O"], pattern: Pattern, values_N: Float[Tensor, " N"]) -> Float[Tensor, "B O"]:
    """Sparse (B x L) times dense (L x O), summed at least in float32."""
    matrix_LO, width = matrix_LO.contiguous(), matrix_LO.shape[1]
    out_BO = matrix_LO.new_empty(pattern.n_rows, width)
    if out_BO.numel():
        tile = min(WIDEST, triton.next_power_of_2(width))
        _bag[pattern.n_rows, triton.cdiv(width, tile)](
            matrix_LO, pattern.indices_N, pattern.offsets_B1, values_N.contiguous(), out_BO, width,
            total_type=_total_type(matrix_LO), N=AT_ONCE, W=tile,
        )  # fmt: skip
    return out_BO


def sample_products(
    left_BO: Float[Tensor, "B O"], right_LO: Float[Tensor, "L O"], pattern: Pattern
) -> Float[Tensor, " N"]:
    """`<left[row], right[column]>` at every entry, summed at least in float32."""
    left_BO, right_LO, width = left_BO.contiguous(), right_LO.contiguous(), left_BO.shape[1]
    out_N = left_BO.new_empty(len(pattern))
    if len(pattern):
        _sample[(triton.cdiv(len(pattern), AT_ONCE),)](
            left_BO, right_LO, pattern.rows_N, pattern.indices_N, out_N, len(pattern), width,
            total_type=_total_type(left_BO), N=AT_ONCE, W=min(WIDEST, triton.next_power_of_2(width)),
        )  # fmt: skip
    return out_N
