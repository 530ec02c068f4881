"""Sparse products equal dense ones, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from crosscode.kernels.selection import entries_where
from crosscode.kernels.sparse import (
    attach_linear,
    bag_columns,
    bag_rows,
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
    torch.testing.assert_close(sample_products(g_BO, W_LO, rows_N, indices_N), (g_BO @ W_LO.t())[mask_BL])


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


def test_long_gathers_are_cut_without_a_seam() -> None:
    """More entries than fit in one slice give the same products."""
    left_BO, right_LO = normal(4, 1 << 12).float(), normal(4, 1 << 12, seed=1).float()
    rows_N = torch.arange(1000) % 4
    columns_N = torch.arange(1000) // 4 % 4
    wanted_N = (left_BO @ right_LO.t())[rows_N, columns_N]
    torch.testing.assert_close(sample_products(left_BO, right_LO, rows_N, columns_N), wanted_N, rtol=1e-4, atol=1e-3)


def test_gradients_are_the_same_bits_every_time() -> None:
    """Sums are taken in one order."""
    _, indices_N, offsets_B1 = pattern(0.6)
    rows_N, values_N = row_of_entry(offsets_B1), normal(len(indices_N)).float()
    g_BO = normal(N_ROWS, N_OUT, seed=2).float()
    first = bag_columns(g_BO, indices_N, rows_N, values_N, N_COLUMNS)
    assert all(torch.equal(first, bag_columns(g_BO, indices_N, rows_N, values_N, N_COLUMNS)) for _ in range(5))
