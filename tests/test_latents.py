"""Codes are the same codes in either form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosscode.kernels.selection import entries_where
from crosscode.latents import Latents

B, L = 5, 7


def both_forms(seed: int, rate: float) -> tuple[Latents, Latents, Tensor]:
    """Dense and sparse codes over one leaf of values, rows and latents that never fire included."""
    generator = torch.Generator().manual_seed(seed)
    leaf_BL = torch.rand(B, L, generator=generator, dtype=torch.float64) + 0.1
    mask_BL = torch.rand(B, L, generator=generator) < rate
    leaf_BL.requires_grad_()
    sparse = Latents.from_entries(leaf_BL[mask_BL], entries_where(mask_BL))
    return Latents.from_dense(leaf_BL * mask_BL), sparse, leaf_BL


forms = given(seed=st.integers(0, 1000), rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]))


@settings(max_examples=20, deadline=None, derandomize=True)
@forms
def test_both_forms_say_the_same(seed: int, rate: float) -> None:
    """Dense values, who fired, how often, how many on each token."""
    dense, sparse, _ = both_forms(seed, rate)
    assert sparse.is_sparse
    assert not dense.is_sparse
    assert len(sparse) == len(dense) == B
    assert torch.equal(sparse.dense(), dense.dense())
    assert torch.equal(sparse.fired_L(), dense.fired_L())
    assert torch.equal(sparse.count_L(), dense.count_L())
    assert torch.equal(sparse.l0_B(), dense.l0_B())
    torch.testing.assert_close(sparse.sum_L(), dense.dense().sum(0))
    torch.testing.assert_close(dense.sum_L(), dense.dense().sum(0))
    assert sparse.density() == sparse.values.numel() / (B * L)
    assert dense.density() == 1
    assert torch.equal(sparse.detach().dense(), dense.detach().dense())
    assert not sparse.detach().dense().requires_grad


@settings(max_examples=20, deadline=None, derandomize=True)
@forms
def test_slices_and_prefixes_agree(seed: int, rate: float) -> None:
    """Ranges count from 0 again; a prefix keeps its width; gradients reach the values kept and no others."""
    for part in (slice(0, 3), slice(2, 6), slice(4, None), slice(None), slice(3, 3), slice(-2, None), slice(5, 2)):
        dense, sparse, leaf_BL = both_forms(seed, rate)
        wanted = dense.dense()[:, part]
        assert torch.equal(dense.slice(part).dense(), wanted)
        assert torch.equal(sparse.slice(part).dense(), wanted)
        assert sparse.slice(part).n_latents == wanted.shape[1]
        (got,) = torch.autograd.grad(sparse.slice(part).dense().sum(), leaf_BL)
        (should,) = torch.autograd.grad(wanted.sum(), leaf_BL)
        assert torch.equal(got, should)
    for n in (0, 3, L, L + 1):
        dense, sparse, _ = both_forms(seed, rate)
        wanted = dense.dense() * (torch.arange(L) < n)
        assert torch.equal(dense.prefix(n).dense(), wanted)
        assert torch.equal(sparse.prefix(n).dense(), wanted)
        assert torch.equal(sparse.prefix(n).l0_B(), (wanted > 0).sum(-1))


@settings(max_examples=20, deadline=None, derandomize=True)
@forms
def test_products_and_their_gradients_agree(seed: int, rate: float) -> None:
    """`codes @ W`, for the values and for `W`."""
    W_LO = torch.randn(L, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)
    results = []
    for which in (0, 1):
        *codes, leaf_BL = both_forms(seed, rate)
        out_BO = codes[which] @ W_LO
        weights_BO = torch.arange(out_BO.numel()).reshape(out_BO.shape).double()
        results.append((out_BO, *torch.autograd.grad((out_BO * weights_BO).sum(), (leaf_BL, W_LO))))
    for dense, sparse in zip(*results):
        torch.testing.assert_close(sparse, dense)


@settings(max_examples=20, deadline=None, derandomize=True)
@forms
def test_sums_over_entries_are_sums_over_all(seed: int, rate: float) -> None:
    """For any term that is 0 where a latent is silent."""
    a_L = torch.arange(1.0, L + 1).double()
    sums = []
    for codes in both_forms(seed, rate)[:2]:
        f, a = codes.entries(a_L)
        sums.append(torch.tanh(f * a).sum())
    torch.testing.assert_close(*sums)


def test_only_contiguous_ranges_are_sliced() -> None:
    """A step would need another meaning of the indices."""
    _, sparse, _ = both_forms(0, 0.5)
    with pytest.raises(AssertionError):
        sparse.slice(slice(0, 6, 2))
