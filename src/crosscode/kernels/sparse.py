"""Products with codes that are almost all zero, forward and backward.

At k = 32 of 8192 the dense products of a sparse coder are 99.6 % zeros. Gradients of the two weight matrices are bags
over the *transposed* pattern: sort the entries by column once, then sum rows of the batch, which stays in cache.
Autograd gives each gradient the precision of what it is of.
"""

import functools
import importlib.util
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crosscode.kernels.pattern import Pattern


def _triton_kernels(matrix: Tensor) -> Any | None:
    """Kernels for where the matrix lies: on a GPU, where triton is installed; elsewhere torch's own products serve."""
    return _import_triton_kernels() if matrix.is_cuda else None


@functools.cache
def _import_triton_kernels() -> Any | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from crosscode.kernels import triton_bags

    return triton_bags


def _bag(matrix_RO: Tensor, indices_N: Tensor, offsets_B1: Tensor, values_N: Tensor) -> Tensor:
    """Sums of rows, each with its weight, bag by bag."""
    if len(indices_N) == 0:
        return matrix_RO.new_zeros(len(offsets_B1) - 1, matrix_RO.shape[1])
    weights_N = values_N.to(matrix_RO.dtype)
    return F.embedding_bag(indices_N, matrix_RO, offsets_B1[:-1], mode="sum", per_sample_weights=weights_N)


def bag_rows(matrix_LO: Float[Tensor, "L O"], pattern: Pattern, values_N: Float[Tensor, " N"]) -> Float[Tensor, "B O"]:
    """Sparse (B x L) times dense (L x O)."""
    if (kernels := _triton_kernels(matrix_LO)) is not None:
        out_BO: Tensor = kernels.bag_rows(matrix_LO, pattern, values_N)
        return out_BO
    return _bag(matrix_LO, pattern.indices_N, pattern.offsets_B1, values_N)


def bag_columns(
    matrix_BO: Float[Tensor, "B O"], pattern: Pattern, values_N: Float[Tensor, " N"]
) -> Float[Tensor, "L O"]:
    """Transposed sparse (L x B) times dense (B x O): the gradient of a weight matrix."""
    order_N, transposed = pattern.by_column
    return bag_rows(matrix_BO, transposed, values_N.index_select(0, order_N))


def sum_columns(values_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " L"]:
    """The sum of each column's entries (no graph)."""
    return torch.bincount(pattern.indices_N, weights=values_N, minlength=pattern.n_columns).to(values_N.dtype)


def sample_products(
    left_BO: Float[Tensor, "B O"], right_LO: Float[Tensor, "L O"], pattern: Pattern
) -> Float[Tensor, " N"]:
    """`<left[row], right[column]>` at every entry."""
    if (kernels := _triton_kernels(left_BO)) is not None:
        out_N: Tensor = kernels.sample_products(left_BO, right_LO, pattern)
        return out_N
    if pattern.n_columns > pattern.n_rows:  # the smaller matrix is the one to be read at random: it stays in cache
        order_N, transposed = pattern.by_column
        products_N = _sample_rows(right_LO, left_BO, transposed)
        return torch.empty_like(products_N).index_copy_(0, order_N, products_N)
    return _sample_rows(left_BO, right_LO, pattern)


def _sample_rows(left_BO: Tensor, right_LO: Tensor, pattern: Pattern) -> Tensor:
    if left_BO.device.type == "cpu" and left_BO.dtype in (torch.float32, torch.float64) and _has_csr_products():
        zeros = _csr(pattern, left_BO.new_zeros(len(pattern)))
        sampled: Tensor = torch.sparse.sampled_addmm(zeros, left_BO, right_LO.t(), beta=0.0)
        return sampled.values()
    out_N = left_BO.new_empty(len(pattern))
    step = max(1, (1 << 20) // left_BO.shape[1])  # so that the gathered rows stay in cache
    for start in range(0, len(pattern), step):
        part = slice(start, start + step)
        left_nO = left_BO.index_select(0, pattern.rows_N[part])
        right_nO = right_LO.index_select(0, pattern.indices_N[part])
        torch.linalg.vecdot(left_nO, right_nO, out=out_N[part])
    return out_N


def _csr(pattern: Pattern, values_N: Tensor) -> Tensor:
    size = (pattern.n_rows, pattern.n_columns)
    return torch.sparse_csr_tensor(pattern.offsets_B1, pattern.indices_N, values_N, size=size, check_invariants=False)


@functools.cache
def _has_csr_products() -> bool:
    """Whether this torch was built with MKL. The first CSR tensor of a process warns that CSR is new: not here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _csr(Pattern.from_flat(torch.zeros(0, dtype=torch.int64), 1, 1), torch.zeros(0))
    return bool(torch.backends.mkl.is_available())


class _RowNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(W, dim=-1)
        ctx.save_for_backward(W, norms)
        return norms

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        W, norms = ctx.saved_tensors
        unit: Tensor = W * torch.where(norms > 0, grads[0] / norms, 0.0)[..., None]
        return unit


def row_norms(W: Float[Tensor, "*L D"]) -> Float[Tensor, "*L"]:
    """L2 norms along the last axis; the gradient, 0 at 0, is one product."""
    applied: Tensor = _RowNorms.apply(W)  # type: ignore[no-untyped-call]
    return applied


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, per_column_L: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        return per_column_L.index_select(0, pattern.indices_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return sum_columns(grads[0], ctx.pattern), None


def gather(per_column_L: Float[Tensor, " L"], pattern: Pattern) -> Float[Tensor, " N"]:
    """A column's number at each of its entries; the gradient adds up in one pass."""
    applied: Tensor = _Gather.apply(per_column_L, pattern)  # type: ignore[no-untyped-call]
    return applied


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_N: Tensor, W_LO: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values_N, W_LO)
        ctx.pattern = pattern
        return bag_rows(W_LO.detach(), pattern, values_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values_N, W_LO = ctx.saved_tensors
        g_BO = grads[0].contiguous()
        g_values_N = g_W_LO = None
        if ctx.needs_input_grad[0]:
            g_values_N = sample_products(g_BO, W_LO.to(g_BO.dtype), ctx.pattern)
        if ctx.needs_input_grad[1]:
            g_W_LO = bag_columns(g_BO, ctx.pattern, values_N)
        return g_values_N, g_W_LO, None


def sparse_decode(values_N: Float[Tensor, " N"], W_LO: Float[Tensor, "L O"], pattern: Pattern) -> Float[Tensor, "B O"]:
    """`codes @ W` for sparse codes, with sparse gradients for the values and for `W`."""
    applied: Tensor = _Decode.apply(values_N, W_LO, pattern)  # type: ignore[no-untyped-call]
    return applied


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_N: Tensor, x_BI: Tensor, W_IL: Tensor, b_L: Tensor | None, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(x_BI, W_IL)
        ctx.pattern = pattern
        return values_N.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BI, W_IL = ctx.saved_tensors
        (g_N,) = grads
        g_x_BI = g_W_IL = g_b_L = None
        if ctx.needs_input_grad[1]:
            g_x_BI = bag_rows(W_IL.t().contiguous(), ctx.pattern, g_N)
        if ctx.needs_input_grad[2]:
            # Turned here, where it is a matrix: with more axes torch would turn it ten times as slowly.
            g_W_IL = bag_columns(x_BI.contiguous(), ctx.pattern, g_N).t().contiguous()
        if ctx.needs_input_grad[3]:
            g_b_L = sum_columns(g_N, ctx.pattern)
        return None, g_x_BI, g_W_IL, g_b_L, None


def attach_linear(
    values_N: Float[Tensor, " N"],
    x_BI: Float[Tensor, "B I"],
    W_IL: Float[Tensor, "I L"],
    b_L: Float[Tensor, " L"] | None,
    pattern: Pattern,
) -> Float[Tensor, " N"]:
    """Give chosen entries of `x @ W + b`, computed without a graph, the gradient they should have.

    The values pass through; the backward touches the chosen entries only.
    """
    applied: Tensor = _Attach.apply(values_N, x_BI, W_IL, b_L, pattern)  # type: ignore[no-untyped-call]
    return applied
