"""One batch of codes. Sparse is a property of the codes, not of a scheme."""

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.kernels.pattern import Pattern
from crosscode.kernels.sparse import gather, sparse_decode


def at_least_fp32(values: Tensor) -> torch.dtype:
    """What sums over tokens, latents or layers are taken in: half precision is for products."""
    return torch.promote_types(values.dtype, torch.float32)


def total(values: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The sum of all values, in float32 at least."""
    return values.sum(dtype=at_least_fp32(values))


@attrs.frozen(eq=False, slots=False)
class Latents:
    """Latents of a batch, dense or sparse; every operation is differentiable in the values.

    Make them with `Latents.from_dense` or `Latents.from_entries`.

    Attributes:
        values: all values `BL` when dense; those of the pattern's entries `N` when sparse.
        pattern: which token and latent each stored value belongs to; None when dense.
        pre: the pre-activation of each stored value, where the activation hands them on.
    """

    values: Float[Tensor, "..."]
    pattern: Pattern | None = None
    pre: Float[Tensor, "..."] | None = None

    @classmethod
    def from_dense(cls, values_BL: Float[Tensor, "B L"], pre_BL: Float[Tensor, "B L"] | None = None) -> "Latents":
        """Codes as a dense matrix."""
        return cls(values_BL, None, pre_BL)

    @classmethod
    def from_entries(
        cls, values_N: Float[Tensor, " N"], pattern: Pattern, pre_N: Float[Tensor, " N"] | None = None
    ) -> "Latents":
        """Codes as entries, silent everywhere else."""
        return cls(values_N, pattern, pre_N)

    @property
    def n_latents(self) -> int:
        """How many latents there are (`L`), fired or not."""
        return self.values.shape[-1] if self.pattern is None else self.pattern.n_columns

    @property
    def is_sparse(self) -> bool:
        """Whether only some values are stored."""
        return self.pattern is not None

    def __len__(self) -> int:
        return len(self.values) if self.pattern is None else self.pattern.n_rows

    def dense(self) -> Float[Tensor, "B L"]:
        """All values as a matrix."""
        if self.pattern is None:
            return self.values
        zeros_BL = self.values.new_zeros(len(self), self.n_latents)
        return zeros_BL.index_put((self.pattern.rows_N, self.pattern.indices_N), self.values)

    def density(self) -> float:
        """The share of values that are stored."""
        return self.values.numel() / max(1, len(self) * self.n_latents)

    def entries(self, per_latent_L: Float[Tensor, " L"]) -> tuple[Tensor, Tensor]:
        """The stored values beside a per-latent number, in shapes that broadcast: `(BL, L)` or `(N, N)`.

        Sums over the stored values are sums over all, for any term that is 0 where a latent is silent.
        """
        return self.values, per_latent_L if self.pattern is None else gather(per_latent_L, self.pattern)

    def sum_L(self) -> Float[Tensor, " L"]:
        """The sum of each latent's values over the tokens."""
        if self.pattern is None:
            return self.values.sum(0, dtype=at_least_fp32(self.values))
        sums_L = self.values.new_zeros(self.n_latents, dtype=at_least_fp32(self.values))
        return sums_L.index_add(0, self.pattern.indices_N, self.values.to(sums_L.dtype))

    def fired_L(self) -> Bool[Tensor, " L"]:
        """Which latents fired (value > 0) on any token."""
        values = self.values.detach()
        if self.pattern is None:
            return values.amax(0) > 0 if len(values) else values.sum(0) > 0
        return self.count_L() > 0

    def count_L(self) -> Int[Tensor, " L"]:
        """On how many tokens each latent fired."""
        values = self.values.detach()
        if self.pattern is None:
            return (values > 0).sum(0)
        return _count(self.pattern.indices_N, values > 0, self.n_latents)

    def l0_B(self) -> Int[Tensor, " B"]:
        """How many latents fired on each token."""
        values = self.values.detach()
        if self.pattern is None:
            return (values > 0).sum(-1)
        return _count(self.pattern.rows_N, values > 0, len(self))

    def slice(self, latents: slice) -> "Latents":
        """The codes of a contiguous range of latents, which are counted from 0 again."""
        start, stop, step = latents.indices(self.n_latents)
        assert step == 1, "latents are sliced contiguously"
        stop = max(start, stop)
        if self.pattern is None:
            return Latents.from_dense(self.values[:, start:stop])
        own_n, pattern = self.pattern.columns(slice(start, stop))
        return Latents.from_entries(self.values.index_select(0, own_n), pattern)

    def prefix(self, n: int) -> "Latents":
        """The codes with all latents from the n-th on silenced."""
        if self.pattern is None:
            kept_L = torch.arange(self.n_latents, device=self.values.device) < n
            return Latents.from_dense(self.values * kept_L)
        return Latents.from_entries(self.values * (self.pattern.indices_N < n), self.pattern)

    def detach(self) -> "Latents":
        """The same codes without a graph."""
        return Latents(self.values.detach(), self.pattern)

    def __matmul__(self, W_LO: Float[Tensor, "L O"]) -> Float[Tensor, "B O"]:
        """Codes times a matrix of directions, whichever form the codes have."""
        return self.values @ W_LO if self.pattern is None else sparse_decode(self.values, W_LO, self.pattern)


def _count(where_N: Int[Tensor, " N"], fired_N: Bool[Tensor, " N"], n: int) -> Int[Tensor, " n"]:
    """How many entries fired at each place."""
    if fired_N.all():
        return torch.bincount(where_N, minlength=n)
    return torch.bincount(where_N, weights=fired_N.double(), minlength=n).long()
