"""One batch of codes. Sparse is a property of the codes, not of a scheme."""

from functools import cached_property

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.kernels.sparse import gather, row_of_entry, sparse_decode


@attrs.frozen(eq=False, slots=False)
class Latents:
    """Latents of a batch, dense or sparse; every operation is differentiable in the values.

    Make them with `Latents.from_dense` or `Latents.from_entries`.

    Attributes:
        n_latents: how many latents there are (`L`), fired or not.
        values: all values `BL` when dense; the kept ones `N`, row by row, when sparse.
        indices_N: which latent each kept value belongs to; None when dense.
        offsets_B1: where each row's kept values start; None when dense.
        pre: the pre-activation of each stored value, where the activation hands them on.
    """

    n_latents: int
    values: Float[Tensor, "..."]
    indices_N: Int[Tensor, " N"] | None = None
    offsets_B1: Int[Tensor, " B1"] | None = None
    pre: Float[Tensor, "..."] | None = None

    @classmethod
    def from_dense(cls, values_BL: Float[Tensor, "B L"], pre_BL: Float[Tensor, "B L"] | None = None) -> "Latents":
        """Codes as a dense matrix."""
        return cls(values_BL.shape[-1], values_BL, pre=pre_BL)

    @classmethod
    def from_entries(
        cls,
        values_N: Float[Tensor, " N"],
        indices_N: Int[Tensor, " N"],
        offsets_B1: Int[Tensor, " B1"],
        n_latents: int,
        pre_N: Float[Tensor, " N"] | None = None,
    ) -> "Latents":
        """Codes as entries: row b holds the entries `offsets[b]` to `offsets[b + 1]`."""
        return cls(n_latents, values_N, indices_N, offsets_B1, pre_N)

    @property
    def is_sparse(self) -> bool:
        """Whether only the kept values are stored."""
        return self.indices_N is not None

    def __len__(self) -> int:
        return len(self.values) if self.offsets_B1 is None else len(self.offsets_B1) - 1

    @cached_property
    def rows_N(self) -> Int[Tensor, " N"]:
        """The row of each kept value (sparse codes only)."""
        assert self.offsets_B1 is not None
        return row_of_entry(self.offsets_B1)

    def dense(self) -> Float[Tensor, "B L"]:
        """All values as a matrix."""
        if self.indices_N is None:
            return self.values
        zeros_BL = self.values.new_zeros(len(self), self.n_latents)
        return zeros_BL.index_put((self.rows_N, self.indices_N), self.values)

    def density(self) -> float:
        """The share of values that are stored."""
        return self.values.numel() / max(1, len(self) * self.n_latents)

    def entries(self, per_latent_L: Float[Tensor, " L"]) -> tuple[Tensor, Tensor]:
        """The stored values beside a per-latent number, in shapes that broadcast: `(BL, L)` or `(N, N)`.

        Sums over the stored values are sums over all, for any term that is 0 where a latent is silent.
        """
        if self.indices_N is None:
            return self.values, per_latent_L
        return self.values, gather(per_latent_L, self.indices_N)

    def fired_L(self) -> Bool[Tensor, " L"]:
        """Which latents fired (value > 0) on any token."""
        values = self.values.detach()
        if self.indices_N is None:
            return (values > 0).any(0)
        fired_L = torch.zeros(self.n_latents, dtype=torch.bool, device=values.device)
        fired_L[self.indices_N[values > 0]] = True
        return fired_L

    def count_L(self) -> Int[Tensor, " L"]:
        """On how many tokens each latent fired."""
        values = self.values.detach()
        if self.indices_N is None:
            return (values > 0).sum(0)
        return torch.bincount(self.indices_N[values > 0], minlength=self.n_latents)

    def l0_B(self) -> Int[Tensor, " B"]:
        """How many latents fired on each token."""
        values = self.values.detach()
        if self.indices_N is None:
            return (values > 0).sum(-1)
        return torch.bincount(self.rows_N[values > 0], minlength=len(self))

    def slice(self, latents: slice) -> "Latents":
        """The codes of a contiguous range of latents, which are counted from 0 again."""
        start, stop, step = latents.indices(self.n_latents)
        assert step == 1, "latents are sliced contiguously"
        stop = max(start, stop)
        if self.indices_N is None:
            return Latents.from_dense(self.values[:, start:stop])
        keep_N = (self.indices_N >= start) & (self.indices_N < stop)
        counts_B = torch.bincount(self.rows_N[keep_N], minlength=len(self))
        offsets_B1 = torch.nn.functional.pad(counts_B.cumsum(0), (1, 0))
        return Latents.from_entries(self.values[keep_N], self.indices_N[keep_N] - start, offsets_B1, stop - start)

    def prefix(self, n: int) -> "Latents":
        """The codes with all latents from the n-th on silenced."""
        if self.indices_N is None:
            kept_L = torch.arange(self.n_latents, device=self.values.device) < n
            return Latents.from_dense(self.values * kept_L)
        kept_N = self.indices_N < n
        return Latents(self.n_latents, self.values * kept_N, self.indices_N, self.offsets_B1)

    def detach(self) -> "Latents":
        """The same codes without a graph."""
        return Latents(self.n_latents, self.values.detach(), self.indices_N, self.offsets_B1)

    def __matmul__(self, W_LO: Float[Tensor, "L O"]) -> Float[Tensor, "B O"]:
        """Codes times a matrix of directions, whichever form the codes have."""
        if self.indices_N is None:
            return self.values @ W_LO
        assert self.offsets_B1 is not None
        return sparse_decode(self.values, W_LO, self.indices_N, self.offsets_B1)
