"""How often and how strongly latents fire: against direct counts, however the batches are cut."""

from collections.abc import Callable

import pytest
import torch

from crosscode.evaluation import Activity
from crosscode.evaluation.activity import N_BINS
from crosscode.kernels.pattern import Pattern
from crosscode.latents import Latents


def values() -> torch.Tensor:
    """500 tokens, latents of very different size, one that never fires and one that grows and grows."""
    generator = torch.Generator().manual_seed(0)
    values_BL = torch.randn(500, 5, generator=generator).relu() * torch.tensor([1.0, 1e-4, 300.0, 0.0, 1.0])
    values_BL[:, 4] = torch.linspace(0, 50, 500).square()
    return values_BL


def sparse(values_BL: torch.Tensor) -> Latents:
    """The same codes as entries."""
    rows_N, indices_N = values_BL.nonzero(as_tuple=True)
    pattern = Pattern.from_counts(indices_N, torch.bincount(rows_N, minlength=len(values_BL)), values_BL.shape[1])
    return Latents.from_entries(values_BL[rows_N, indices_N], pattern)


@pytest.mark.parametrize("size", [1, 37, 500])
@pytest.mark.parametrize("form", [Latents.from_dense, sparse], ids=["dense", "sparse"])
def test_sums_and_histograms(size: int, form: Callable[[torch.Tensor], Latents]) -> None:
    """Counts, means, maxima; each value in the bin it lies in, more than half of the bins in use."""
    values_BL = values()
    activity = Activity.fresh(5)
    for part_BL in values_BL.split(size):
        activity.add(form(part_BL))
    fires_BL = values_BL > 0
    assert activity.n_tokens == 500
    assert torch.equal(activity.count_L, fires_BL.sum(0))
    torch.testing.assert_close(activity.density_L, fires_BL.double().mean(0))
    torch.testing.assert_close(activity.max_L, values_BL.double().amax(0))
    mean_L = values_BL.double().sum(0) / fires_BL.sum(0).clamp_min(1)
    torch.testing.assert_close(activity.mean_L, mean_L)
    for latent in range(5):
        width, counts = float(activity.bin_width_L[latent]), activity.histogram_Lb[latent].tolist()
        fired = values_BL[fires_BL[:, latent], latent].double()
        wanted = [int(((fired > i * width) & (fired <= (i + 1) * width)).sum()) for i in range(N_BINS)]
        assert counts == wanted
        assert sum(counts) == len(fired)
        if len(fired):
            assert sum(count > 0 for count in counts[N_BINS // 2 :]) > 0
