"""Products with codes that are almost all zero, forward and backward.

At k = 32 of 8192 the dense products of a sparse coder are 99.6 % zeros. Entries are stored row by row (CSR):
values, column indices and row offsets. Gradients of the two weight matrices are bags over the *transposed*
pattern: sort the entries by column once, then sum rows of the batch, which stays in cache.
"""

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def row_of_entry(offsets_B1: Int[Tensor, " B1"]) -> Int[Tensor, " N"]:
    """The row each entry lies in."""
    counts_B = offsets_B1.diff()
    return torch.repeat_interleave(torch.arange(len(counts_B), device=counts_B.device), counts_B)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, per_column_L: Tensor, indices_N: Tensor) -> Tensor:
        ctx.save_for_backward(indices_N)
        ctx.n_columns = len(per_column_L)
        return per_column_L[indices_N]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (indices_N,), (g_N,) = ctx.saved_tensors, grads
        return torch.bincount(indices_N, weights=g_N, minlength=ctx.n_columns).to(g_N.dtype), None


def gather(per_column_L: Float[Tensor, " L"], indices_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """A column's number at each of its entries; the gradient adds up in one pass."""
    return _Gather.apply(per_column_L, indices_N)  # type: ignore[return-value]


def bag_rows(
    matrix_RO: Float[Tensor, "R O"],
    indices_N: Int[Tensor, " N"],
    offsets_B1: Int[Tensor, " B1"],
    values_N: Float[Tensor, " N"],
) -> Float[Tensor, "B O"]:
    """Sparse (B x R) times dense (R x O)."""
    if len(indices_N) == 0:
        return matrix_RO.new_zeros(len(offsets_B1) - 1, matrix_RO.shape[1])
    return F.embedding_bag(
        indices_N, matrix_RO, offsets_B1[:-1], mode="sum", per_sample_weights=values_N.to(matrix_RO.dtype)
    )


def bag_columns(
    matrix_BO: Float[Tensor, "B O"],
    indices_N: Int[Tensor, " N"],
    rows_N: Int[Tensor, " N"],
    values_N: Float[Tensor, " N"],
    n_columns: int,
) -> Float[Tensor, "L O"]:
    """Transposed sparse (L x B) times dense (B x O): the gradient of a weight matrix."""
    order_N = indices_N.int().argsort(stable=True)  # stable: the same sums in the same order, always
    counts_L = torch.bincount(indices_N, minlength=n_columns)
    offsets_L1 = F.pad(counts_L.cumsum(0), (1, 0))
    return bag_rows(matrix_BO, rows_N[order_N], offsets_L1, values_N[order_N])


def sample_products(
    left_BO: Float[Tensor, "B O"],
    right_LO: Float[Tensor, "L O"],
    indices_N: Int[Tensor, " N"],
    offsets_B1: Int[Tensor, " B1"],
) -> Float[Tensor, " N"]:
    """`<left[row], right[column]>` at every entry."""
    if left_BO.device.type == "cpu" and left_BO.dtype in (torch.float32, torch.float64) and _has_csr_products():
        pattern = _csr(indices_N, offsets_B1, left_BO.new_zeros(len(indices_N)), right_LO.shape[0])
        return torch.sparse.sampled_addmm(pattern, left_BO, right_LO.t(), beta=0.0).values()
    rows_N = row_of_entry(offsets_B1)
    out_N = left_BO.new_empty(len(rows_N))
    step = max(1, (1 << 20) // max(1, left_BO.shape[1]))  # so that the gathered rows stay in cache
    for start in range(0, len(rows_N), step):
        part = slice(start, start + step)
        torch.linalg.vecdot(left_BO[rows_N[part]], right_LO[indices_N[part]], out=out_N[part])
    return out_N


def _csr(indices_N: Tensor, offsets_B1: Tensor, values_N: Tensor, n_columns: int) -> Tensor:
    size = (len(offsets_B1) - 1, n_columns)
    return torch.sparse_csr_tensor(offsets_B1, indices_N, values_N, size=size, check_invariants=False)


@functools.cache
def _has_csr_products() -> bool:
    """Whether this torch was built with MKL. The first CSR tensor of a process warns that CSR is new: not here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _csr(torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(0), 1)
    return torch.backends.mkl.is_available()


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_N: Tensor, W_LO: Tensor, indices_N: Tensor, offsets_B1: Tensor) -> Tensor:
        ctx.save_for_backward(values_N, W_LO, indices_N, offsets_B1)
        return bag_rows(W_LO.detach(), indices_N, offsets_B1, values_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values_N, W_LO, indices_N, offsets_B1 = ctx.saved_tensors
        (g_BO,) = grads
        g_BO = g_BO.contiguous()
        g_values_N = g_W_LO = None
        if ctx.needs_input_grad[0]:
            g_values_N = sample_products(g_BO, W_LO.to(g_BO.dtype), indices_N, offsets_B1).to(values_N.dtype)
        if ctx.needs_input_grad[1]:
            g_W_LO = bag_columns(g_BO, indices_N, row_of_entry(offsets_B1), values_N, W_LO.shape[0]).to(W_LO.dtype)
        return g_values_N, g_W_LO, None, None


def sparse_decode(
    values_N: Float[Tensor, " N"],
    W_LO: Float[Tensor, "L O"],
    indices_N: Int[Tensor, " N"],
    offsets_B1: Int[Tensor, " B1"],
) -> Float[Tensor, "B O"]:
    """`codes @ W` for sparse codes, with sparse gradients for the values and for `W`."""
    return _Decode.apply(values_N, W_LO, indices_N, offsets_B1)  # type: ignore[return-value]


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values_N: Tensor,
        x_BI: Tensor,
        W_IL: Tensor,
        b_L: Tensor | None,
        indices_N: Tensor,
        offsets_B1: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x_BI, W_IL, indices_N, offsets_B1)
        return values_N.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BI, W_IL, indices_N, offsets_B1 = ctx.saved_tensors
        (g_N,) = grads
        rows_N = row_of_entry(offsets_B1)
        g_x_BI = g_W_IL = g_b_L = None
        if ctx.needs_input_grad[1]:
            g_x_BI = bag_rows(W_IL.t().contiguous(), indices_N, offsets_B1, g_N).to(x_BI.dtype)
        if ctx.needs_input_grad[2]:
            g_W_IL = bag_columns(x_BI.contiguous(), indices_N, rows_N, g_N, W_IL.shape[1]).t().to(W_IL.dtype)
        if ctx.needs_input_grad[3]:
            g_b_L = torch.bincount(indices_N, weights=g_N, minlength=W_IL.shape[1]).to(W_IL.dtype)
        return None, g_x_BI, g_W_IL, g_b_L, None, None


def attach_linear(
    values_N: Float[Tensor, " N"],
    x_BI: Float[Tensor, "B I"],
    W_IL: Float[Tensor, "I L"],
    b_L: Float[Tensor, " L"] | None,
    indices_N: Int[Tensor, " N"],
    offsets_B1: Int[Tensor, " B1"],
) -> Float[Tensor, " N"]:
    """Give chosen entries of `x @ W + b`, computed without a graph, the gradient they should have.

    The values pass through; the backward touches the chosen entries only.
    """
    return _Attach.apply(values_N, x_BI, W_IL, b_L, indices_N, offsets_B1)  # type: ignore[return-value]
