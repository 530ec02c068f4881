"""The GPU's kernels equal torch's products: on a GPU, or else in triton's interpreter (`nox -s triton`)."""

import pytest
import torch
from strategies import random_batch, random_coder

from crosscode.kernels import sparse, triton_bags
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import entries_where
from crosscode.losses import SummedSquaredError
from crosscode.models import Trace
from crosscode.penalties import AuxK

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def a_pattern(n_rows: int, n_columns: int, rate: float) -> Pattern:
    """With an empty row and an empty column."""
    mask_BL = torch.rand(n_rows, n_columns, generator=torch.Generator().manual_seed(0)) < rate
    mask_BL[1] = False
    mask_BL[:, 2] = False
    return entries_where(mask_BL.to(DEVICE))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("width", [3, 64, 600])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bags_and_products_equal_dense_ones(rate: float, width: int, dtype: torch.dtype) -> None:
    """Empty rows, rows longer than a tile, widths that no tile divides."""
    pattern = a_pattern(7, 40, rate)
    values_N, W_LO, g_BO = normal(len(pattern)), normal(40, width, seed=1), normal(7, width, seed=2)
    values_N, W_LO, g_BO = values_N.to(dtype), W_LO.to(dtype), g_BO.to(dtype)
    codes_BL = torch.zeros(7, 40, dtype=torch.float64, device=DEVICE)
    codes_BL[pattern.rows_N, pattern.indices_N] = values_N.double()
    close = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    got_BO = triton_bags.bag_rows(W_LO, pattern, values_N)
    assert got_BO.dtype == dtype
    torch.testing.assert_close(got_BO.double(), codes_BL @ W_LO.double(), rtol=0.01, atol=close)
    got_N = triton_bags.sample_products(g_BO, W_LO, pattern)
    wanted_N = (g_BO.double() @ W_LO.double().t())[pattern.rows_N, pattern.indices_N]
    torch.testing.assert_close(got_N.double(), wanted_N, rtol=0.01, atol=close)


@pytest.mark.parametrize("shape", ["sae", "crosscoder", "shared", "compound"])
def test_a_step_has_the_values_and_gradients_of_torch(monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    """Through the coder, with AuxK, in float64."""
    found = []
    for kernels in (None, triton_bags):
        monkeypatch.setattr(sparse, "_triton_kernels", lambda matrix, kernels=kernels: kernels)
        coder = random_coder(shape, "topk").to(DEVICE)
        batch = random_batch(coder).to(DEVICE)
        trace = Trace.of(coder, batch, torch.arange(coder.n_latents, device=DEVICE))
        total = SummedSquaredError()(trace) + AuxK(2, dead_after_tokens=8)(trace)
        total.backward()
        found.append([total, *(p.grad for p in coder.parameters() if p.grad is not None)])
    for ours, torchs in zip(*reversed(found)):
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-10)
