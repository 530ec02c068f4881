"""Sparse products equal dense ones, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from crosscode.kernels import sparse
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import entries_where
from crosscode.kernels.sparse import (
    attach_linear,
    bag_columns,
    bag_rows,
    gather,
    row_norms,
    sample_products,
    sparse_decode,
)

N_ROWS, N_IN, N_COLUMNS, N_OUT = 6, 5, 8, 3
RATES = [0.0, 0.2, 1.0]


def masked(rate: float) -> tuple[Tensor, Pattern]:
    """A mask with an empty row and an empty column, and its entries."""
    mask_BL = torch.rand(N_ROWS, N_COLUMNS, generator=torch.Generator().manual_seed(1)) < rate
    mask_BL[2] = False
    mask_BL[:, 3] = False
    return mask_BL, entries_where(mask_BL)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rate", RATES)
def test_bags_are_products(rate: float) -> None:
    """Sparse times dense, transposed sparse times dense, and sampled dense times dense."""
    mask_BL, pattern = masked(rate)
    assert torch.equal(torch.stack([pattern.rows_N, pattern.indices_N]), mask_BL.nonzero().t())
    codes_BL = normal(N_ROWS, N_COLUMNS) * mask_BL
    values_N = codes_BL[mask_BL]
    W_LO, g_BO = normal(N_COLUMNS, N_OUT, seed=1), normal(N_ROWS, N_OUT, seed=2)
    torch.testing.assert_close(bag_rows(W_LO, pattern, values_N), codes_BL @ W_LO)
    torch.testing.assert_close(bag_columns(g_BO, pattern, values_N), codes_BL.t() @ g_BO)
    torch.testing.assert_close(sample_products(g_BO, W_LO, pattern), (g_BO @ W_LO.t())[mask_BL])


@pytest.mark.parametrize("rate", RATES)
def test_decoding_has_the_gradients_of_a_product(rate: float) -> None:
    """Numerically, for values and directions."""
    _, pattern = masked(rate)
    values_N = normal(len(pattern)).requires_grad_()
    W_LO = normal(N_COLUMNS, N_OUT, seed=1).requires_grad_()
    assert gradcheck(lambda v, W: sparse_decode(v, W, pattern), (values_N, W_LO))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("bias", [True, False])
def test_attached_values_have_the_gradients_of_what_they_were_taken_from(rate: float, bias: bool) -> None:
    """Values pass through; inputs, weights and bias get what the chosen entries of `x W + b` would give them."""
    mask_BL, pattern = masked(rate)
    leaves = [normal(N_ROWS, N_IN), normal(N_IN, N_COLUMNS, seed=1), *([normal(N_COLUMNS, seed=2)] if bias else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    x_BI, W_IL, *b_L = leaves
    z_N = (x_BI @ W_IL + (b_L[0] if bias else 0))[mask_BL]
    weights_N = torch.arange(1.0, len(z_N) + 1).double()
    wanted = torch.autograd.grad((z_N * weights_N).sum(), leaves)
    attached_N = attach_linear(z_N.detach(), x_BI, W_IL, b_L[0] if bias else None, pattern)
    assert torch.equal(attached_N, z_N)
    for got, should in zip(torch.autograd.grad((attached_N * weights_N).sum(), leaves), wanted):
        torch.testing.assert_close(got, should)


@pytest.mark.parametrize("has_mkl", [True, False])
def test_long_gathers_are_cut_without_a_seam(monkeypatch: pytest.MonkeyPatch, has_mkl: bool) -> None:
    """More entries than fit in one slice give the same products, whichever way they are taken."""
    if not has_mkl:
        monkeypatch.setattr(sparse, "_has_csr_products", lambda: False)
    left_BO, right_LO = normal(40, 1 << 12), normal(50, 1 << 12, seed=1)
    mask_BL = torch.rand(40, 50, generator=torch.Generator().manual_seed(2)) < 0.5
    products_N = sample_products(left_BO, right_LO, entries_where(mask_BL))
    assert len(products_N) > (1 << 20) // left_BO.shape[1]
    torch.testing.assert_close(products_N, (left_BO @ right_LO.t())[mask_BL])


def test_numbers_of_columns_are_gathered_with_their_gradient() -> None:
    """Each column's gradient is the sum over its entries."""
    _, pattern = masked(0.5)
    per_column_L = normal(N_COLUMNS).requires_grad_()
    assert torch.equal(gather(per_column_L, pattern), per_column_L[pattern.indices_N])
    assert gradcheck(lambda per_column: gather(per_column, pattern), per_column_L)


def test_a_range_of_columns_is_a_pattern_of_its_own() -> None:
    """Its entries are those of the matrix's part, columns counted from 0; the flat places are the mask's."""
    mask_BL, pattern = masked(0.5)
    assert torch.equal(pattern.flat_N, mask_BL.flatten().nonzero()[:, 0])
    assert torch.equal(pattern.of(normal(N_ROWS, N_COLUMNS)), normal(N_ROWS, N_COLUMNS)[mask_BL])
    for part in (slice(0, 3), slice(2, None), slice(4, 4)):
        own_n, own = pattern.columns(part)
        assert torch.equal(torch.stack([own.rows_N, own.indices_N]), mask_BL[:, part].nonzero().t())
        assert torch.equal(pattern.rows_N[own_n], own.rows_N)
        assert (own.n_rows, own.n_columns) == mask_BL[:, part].shape


def test_gradients_are_the_same_bits_every_time() -> None:
    """Sums are taken in one order."""
    _, pattern = masked(0.6)
    values_N = normal(len(pattern)).float()
    g_BO = normal(N_ROWS, N_OUT, seed=2).float()
    first = bag_columns(g_BO, pattern, values_N)
    assert all(torch.equal(first, bag_columns(g_BO, pattern, values_N)) for _ in range(5))


def test_norms_have_the_gradient_of_norms() -> None:
    """And none where a vector is zero."""
    W_LO = normal(N_COLUMNS, N_OUT).requires_grad_()
    assert gradcheck(row_norms, W_LO)
    assert torch.equal(row_norms(W_LO), torch.linalg.vector_norm(W_LO, dim=-1))
    zero_LO = torch.zeros(2, 3, requires_grad=True)
    row_norms(zero_LO).sum().backward()
    assert zero_LO.grad is not None
    assert (zero_LO.grad == 0).all()


@pytest.mark.parametrize("n_tokens", [3, 20])
def test_products_are_sampled_from_either_side(n_tokens: int) -> None:
    """More rows than columns, or fewer."""
    left_BO, right_LO = normal(n_tokens, 4), normal(9, 4, seed=1)
    mask_BL = torch.rand(n_tokens, 9, generator=torch.Generator().manual_seed(2)) < 0.4
    got_N = sample_products(left_BO, right_LO, entries_where(mask_BL))
    torch.testing.assert_close(got_N, (left_BO @ right_LO.t())[mask_BL])
