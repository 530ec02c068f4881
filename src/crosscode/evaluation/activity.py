"""How often and how strongly each latent fires, in one pass.

Shapes: N entries of sparse codes, L latents, b bins of a histogram.
"""

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.latents import Latents

N_BINS = 32


@attrs.define(eq=False)
class Activity:
    """Sums over tokens of each latent's activations where it fires (value > 0).

    A histogram's bins start at 0 and are equally wide; when a larger value comes, they double in width and neighbours
    are added up, so that nothing has to be known beforehand and in the end more than half of the bins are in use.

    Attributes:
        n_tokens: how many tokens were seen.
        count_L: tokens that each latent fired on.
        sum_L: the sum of its activations.
        max_L: the strongest.
        bin_width_L: width of its histogram's bins; 0 if it never fired.
        histogram_Lb: on how many tokens its activation lay in each bin, the upper end belonging to it.
    """

    n_tokens: int
    count_L: Int[Tensor, " L"]
    sum_L: Float[Tensor, " L"]
    max_L: Float[Tensor, " L"]
    bin_width_L: Float[Tensor, " L"]
    histogram_Lb: Int[Tensor, "L b"]

    @classmethod
    def fresh(cls, n_latents: int) -> "Activity":
        """Nothing seen."""
        zeros_L = torch.zeros(n_latents, dtype=torch.float64)
        counts_L, counts_Lb = (torch.zeros(*shape, dtype=torch.int64) for shape in ((n_latents,), (n_latents, N_BINS)))
        return cls(0, counts_L, zeros_L, zeros_L.clone(), zeros_L.clone(), counts_Lb)

    @property
    def density_L(self) -> Float[Tensor, " L"]:
        """The share of tokens that each latent fires on."""
        return self.count_L.double() / max(1, self.n_tokens)

    @property
    def mean_L(self) -> Float[Tensor, " L"]:
        """A latent's mean activation where it fires; 0 if it never does."""
        return self.sum_L / self.count_L.clamp_min(1)

    @torch.no_grad()
    def add(self, latents: Latents) -> None:
        """Count a batch."""
        values_N, latent_N = _fired(latents)
        self.n_tokens += len(latents)
        self.count_L += torch.bincount(latent_N, minlength=len(self.count_L))
        self.sum_L.index_add_(0, latent_N, values_N)
        self.max_L.scatter_reduce_(0, latent_N, values_N, "amax")
        self._widen()
        bin_N = (values_N / self.bin_width_L[latent_N]).ceil().long().clamp(1, N_BINS) - 1
        flat_N = latent_N * N_BINS + bin_N
        self.histogram_Lb += torch.bincount(flat_N, minlength=self.histogram_Lb.numel()).view_as(self.histogram_Lb)

    def _widen(self) -> None:
        """Double the bins of each latent until its strongest activation fits."""
        first_L = (self.bin_width_L == 0) & (self.max_L > 0)
        # A power of 2 at least as wide as needed, so that how batches are cut does not show.
        self.bin_width_L[first_L] = torch.exp2((self.max_L[first_L] / N_BINS).log2().ceil())
        while (short_L := self.max_L > self.bin_width_L * N_BINS).any():
            halves_lb = self.histogram_Lb[short_L].unflatten(-1, (N_BINS // 2, 2)).sum(-1)
            self.histogram_Lb[short_L] = torch.cat([halves_lb, torch.zeros_like(halves_lb)], dim=-1)
            self.bin_width_L[short_L] *= 2


def _fired(latents: Latents) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Positive values and the latents they are of, on the CPU."""
    values = latents.values
    if latents.pattern is None:
        fires_BL = values > 0
        return values[fires_BL].double().cpu(), fires_BL.nonzero()[:, 1].cpu()
    fires_N = values > 0
    return values[fires_N].double().cpu(), latents.pattern.indices_N[fires_N].cpu()
