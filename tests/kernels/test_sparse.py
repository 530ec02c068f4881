"""Sparse products equal dense ones, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from crosscode.kernels import sparse
from crosscode.kernels.selection import entries_where
from crosscode.kernels.sparse import (
    attach_linear,
    bag_columns,
    bag_rows,
    gather,
    row_of_entry,
    sample_products,
    sparse_decode,
)

N_ROWS, N_IN, N_COLUMNS, N_OUT = 6, 5, 8, 3
RATES = [0.0, 0.2, 1.0]


def pattern(rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """A mask with an empty row and an empty column, and its entries."""
    mask_BL = torch.rand(N_ROWS, N_COLUMNS, generator=torch.Generator().manual_seed(1)) < rate
    mask_BL[2] = False
    mask_BL[:, 3] = False
    return mask_BL, *entries_where(mask_BL)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rate", RATES)
def test_bags_are_products(rate: float) -> None:
    """Sparse times dense, transposed sparse times dense, and sampled dense times dense."""
    mask_BL, indices_N, offsets_B1 = pattern(rate)
    rows_N = row_of_entry(offsets_B1)
    assert torch.equal(torch.stack([rows_N, indices_N]), mask_BL.nonzero().t())
    codes_BL = normal(N_ROWS, N_COLUMNS) * mask_BL
    values_N = codes_BL[mask_BL]
    W_LO, g_BO = normal(N_COLUMNS, N_OUT, seed=1), normal(N_ROWS, N_OUT, seed=2)
    torch.testing.assert_close(bag_rows(W_LO, indices_N, offsets_B1, values_N), codes_BL @ W_LO)
    torch.testing.assert_close(bag_columns(g_BO, indices_N, rows_N, values_N, N_COLUMNS), codes_BL.t() @ g_BO)
    torch.testing.assert_close(sample_products(g_BO, W_LO, indices_N, offsets_B1), (g_BO @ W_LO.t())[mask_BL])


@pytest.mark.parametrize("rate", RATES)
def test_decoding_has_the_gradients_of_a_product(rate: float) -> None:
    """Numerically, for values and directions."""
    _, indices_N, offsets_B1 = pattern(rate)
    values_N = normal(len(indices_N)).requires_grad_()
    W_LO = normal(N_COLUMNS, N_OUT, seed=1).requires_grad_()
    assert gradcheck(lambda v, W: sparse_decode(v, W, indices_N, offsets_B1), (values_N, W_LO))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("bias", [True, False])
def test_attached_values_have_the_gradients_of_what_they_were_taken_from(rate: float, bias: bool) -> None:
    """Values pass through; inputs, weights and bias get what the chosen entries of `x W + b` would give them."""
    mask_BL, indices_N, offsets_B1 = pattern(rate)
    leaves = [normal(N_ROWS, N_IN), normal(N_IN, N_COLUMNS, seed=1), *([normal(N_COLUMNS, seed=2)] if bias else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    x_BI, W_IL, *b_L = leaves
    z_N = (x_BI @ W_IL + (b_L[0] if bias else 0))[mask_BL]
    weights_N = torch.arange(1.0, len(z_N) + 1).double()
    wanted = torch.autograd.grad((z_N * weights_N).sum(), leaves)
    attached_N = attach_linear(z_N.detach(), x_BI, W_IL, b_L[0] if bias else None, indices_N, offsets_B1)
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
    products_N = sample_products(left_BO, right_LO, *entries_where(mask_BL))
    assert len(products_N) > (1 << 20) // left_BO.shape[1]
    torch.testing.assert_close(products_N, (left_BO @ right_LO.t())[mask_BL])


def test_numbers_of_columns_are_gathered_with_their_gradient() -> None:
    """Each column's gradient is the sum over its entries."""
    _, indices_N, _ = pattern(0.5)
    per_column_L = normal(N_COLUMNS).requires_grad_()
    assert torch.equal(gather(per_column_L, indices_N), per_column_L[indices_N])
    assert gradcheck(lambda per_column: gather(per_column, indices_N), per_column_L)


def test_gradients_are_the_same_bits_every_time() -> None:
    """Sums are taken in one order."""
    _, indices_N, offsets_B1 = pattern(0.6)
    rows_N, values_N = row_of_entry(offsets_B1), normal(len(indices_N)).float()
    g_BO = normal(N_ROWS, N_OUT, seed=2).float()
    first = bag_columns(g_BO, indices_N, rows_N, values_N, N_COLUMNS)
    assert all(torch.equal(first, bag_columns(g_BO, indices_N, rows_N, values_N, N_COLUMNS)) for _ in range(5))
