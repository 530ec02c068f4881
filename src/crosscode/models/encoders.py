"""Encoders: scaled activations in, pre-activations out."""

from typing import Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosscode.checks import count
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.sparse import attach_linear
from crosscode.models.masks import SiteMask
from crosscode.module import evolve, module
from crosscode.protocols import Structural
from crosscode.shapes import Dims, checked_dims, n_sites, real_coordinates


@runtime_checkable
class Encoder(Protocol, metaclass=Structural):
    """What a coder asks of an encoder. The bias is kept apart because calibration needs `linear` without it."""

    @property
    def in_dims(self) -> Dims: ...

    @property
    def d_in(self) -> int: ...

    @property
    def widths_Xi(self) -> Dims | None: ...

    @property
    def n_latents(self) -> int: ...

    @property
    def b_enc_L(self) -> nn.Parameter | None: ...

    def __call__(self, x_BXiDi: Tensor) -> Tensor:
        """Pre-activations `z_BL`, bias included."""
        ...

    def linear(self, x_BXiDi: Tensor, latents_l: Tensor | slice | None = None) -> Tensor:
        """Pre-activations before the bias, of all latents or of the given ones."""
        ...

    def attach(self, values_N: Tensor, x_BXiDi: Tensor, pattern: Pattern) -> Tensor:
        """Give chosen pre-activations, computed without a graph, their gradient."""
        ...

    def weights(self) -> Tensor:
        """The weights as a dense `W_enc_XiDiL` (differentiable)."""
        ...

    def assign_(self, W_enc_XiDiL: Tensor) -> None:
        """Set the weights to the projection of dense ones."""
        ...

    def folded(self, scale_Xi: Tensor, shift_XiDi: Tensor, a_L: Tensor) -> "Encoder":
        """An encoder of raw activations whose pre-activations are multiplied by `a_L`."""
        ...


def _make_bias(n_latents: int, bias: bool) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(n_latents)) if bias else None


@module
class DenseEncoder(nn.Module):
    """Every latent reads every site: `z_BL = sum_{Xi,Di} x_BXiDi W_enc_XiDiL + b_enc_L`.

    Weights start at zero until an `InitStrategy` sets them.

    Args:
        in_dims: input crosscoding dimensions `Xi`: `()`, `(n_hookpoints,)`, `(n_models, n_hookpoints)`, …
        d_in: width of the activations read (`Di`), the widest if they differ.
        n_latents: how many latents (`L`).
        bias: whether there is a `b_enc_L`.
        widths_Xi: real width of each site in row-major order where they differ; the rest is padding.
        mask: sites each latent may read from; None for all.
    """

    in_dims: Dims
    d_in: int
    n_latents: int
    bias: bool = True
    widths_Xi: Dims | None = None
    mask: SiteMask | None = None

    def __attrs_post_init__(self) -> None:
        self.in_dims = checked_dims("DenseEncoder.in_dims", self.in_dims)
        count("DenseEncoder.d_in", self.d_in)
        count("DenseEncoder.n_latents", self.n_latents)
        self.W_enc_XiDiL = nn.Parameter(torch.zeros(*self.in_dims, self.d_in, self.n_latents))
        self.b_enc_L = _make_bias(self.n_latents, self.bias)
        allowed_XiDi = real_coordinates(self.in_dims, self.d_in, self.widths_Xi).float()
        self.allowed_XiDiL: Tensor | None
        allowed_XiDiL = None
        if self.mask is not None:
            allowed_LXi = self.mask.allowed_LX(self.n_latents, self.in_dims)
            allowed_XiDiL = einsum(allowed_LXi, allowed_XiDi, "L ..., ... Di -> ... Di L").bool()
        self.register_buffer("allowed_XiDiL", allowed_XiDiL, persistent=False)

    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        """The weights as a dense tensor, masked entries zero."""
        return self.W_enc_XiDiL if self.allowed_XiDiL is None else self.W_enc_XiDiL * self.allowed_XiDiL

    def _W_IL(self) -> Float[Tensor, "I L"]:
        return rearrange(self.weights(), "... Di L -> (... Di) L")

    def linear(
        self, x_BXiDi: Float[Tensor, "B *Xi Di"], latents_l: Int[Tensor, " l"] | slice | None = None
    ) -> Float[Tensor, "B l"]:
        x_BI = rearrange(x_BXiDi, "B ... -> B (...)")
        W_IL = self._W_IL()
        return x_BI @ (W_IL if latents_l is None else W_IL[:, latents_l])

    def forward(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B L"]:
        if self.b_enc_L is None:
            return self.linear(x_BXiDi)
        return torch.addmm(self.b_enc_L, rearrange(x_BXiDi, "B ... -> B (...)"), self._W_IL())

    def as_product(
        self, x_BXiDi: Float[Tensor, "B *Xi Di"]
    ) -> tuple[Float[Tensor, "B I"], Float[Tensor, "I L"], Float[Tensor, " L"] | None]:
        """`x`, `W` and `b` of which `x W + b` are the pre-activations."""
        return rearrange(x_BXiDi, "B ... -> B (...)"), self._W_IL(), self.b_enc_L

    def attach(
        self, values_N: Float[Tensor, " N"], x_BXiDi: Float[Tensor, "B *Xi Di"], pattern: Pattern
    ) -> Float[Tensor, " N"]:
        x_BI = rearrange(x_BXiDi, "B ... -> B (...)")
        return attach_linear(values_N, x_BI, self._W_IL(), self.b_enc_L, pattern)

    @torch.no_grad()
    def assign_(self, W_enc_XiDiL: Float[Tensor, "*Xi Di L"]) -> None:
        real_XiDi = real_coordinates(self.in_dims, self.d_in, self.widths_Xi).to(self.W_enc_XiDiL.device)
        self.W_enc_XiDiL.copy_(W_enc_XiDiL * real_XiDi[..., None])
        if self.allowed_XiDiL is not None:
            self.W_enc_XiDiL.mul_(self.allowed_XiDiL)

    @torch.no_grad()
    def folded(
        self, scale_Xi: Float[Tensor, "*Xi"], shift_XiDi: Float[Tensor, "*Xi Di"], a_L: Float[Tensor, " L"]
    ) -> "DenseEncoder":
        raw = evolve(self, bias=True).to(self.W_enc_XiDiL)
        raw.W_enc_XiDiL.copy_(self.weights() * scale_Xi[..., None, None] * a_L)
        bias_L = 0 if self.b_enc_L is None else self.b_enc_L * a_L
        assert raw.b_enc_L is not None
        raw.b_enc_L.copy_(bias_L - rearrange(shift_XiDi, "... -> (...)") @ raw._W_IL())
        return raw


@module
class PerSiteEncoder(nn.Module):
    """Each site has latents of its own, which read that site only and lie end to end: `L = P x Lp`.

    The encoder of the compound CLT (Circuit Tracing, 2025, "Architecture").

    Args:
        in_dims: `(n_sites,)`.
        d_in: width of the activations read (`Di`).
        n_latents_per_site: how many latents each site has (`Lp`).
        bias: whether there is a `b_enc_L`.
        widths_Xi: real width of each site where they differ.
    """

    in_dims: Dims
    d_in: int
    n_latents_per_site: int
    bias: bool = True
    widths_Xi: Dims | None = None

    def __attrs_post_init__(self) -> None:
        self.in_dims = checked_dims("PerSiteEncoder.in_dims", self.in_dims, n=1)
        count("PerSiteEncoder.d_in", self.d_in)
        count("PerSiteEncoder.n_latents_per_site", self.n_latents_per_site)
        (n_hookpoints,) = self.in_dims
        self.W_enc_PDiLp = nn.Parameter(torch.zeros(n_hookpoints, self.d_in, self.n_latents_per_site))
        self.b_enc_L = _make_bias(self.n_latents, self.bias)

    @property
    def n_latents(self) -> int:
        return n_sites(self.in_dims) * self.n_latents_per_site

    @property
    def W_enc_XiDiL(self) -> Float[Tensor, "P Di L"]:
        """The weights as a dense tensor, differentiable; to be read, not written (`assign_` writes)."""
        return self.weights()

    def _site(self, p: int) -> slice:
        return slice(p * self.n_latents_per_site, (p + 1) * self.n_latents_per_site)

    def weights(self) -> Float[Tensor, "P Di L"]:
        """The weights as a dense tensor, block-diagonal over sites."""
        eye_PP = torch.eye(n_sites(self.in_dims), device=self.W_enc_PDiLp.device, dtype=self.W_enc_PDiLp.dtype)
        return rearrange(einsum(self.W_enc_PDiLp, eye_PP, "P Di Lp, Q P -> Q Di P Lp"), "Q Di P Lp -> Q Di (P Lp)")

    def linear(
        self, x_BXiDi: Float[Tensor, "B P Di"], latents_l: Int[Tensor, " l"] | slice | None = None
    ) -> Float[Tensor, "B l"]:
        z_BL = self._side_by_side(x_BXiDi, None)
        return z_BL if latents_l is None else z_BL[:, latents_l]

    def forward(self, x_BXiDi: Float[Tensor, "B P Di"]) -> Float[Tensor, "B L"]:
        return self._side_by_side(x_BXiDi, self.b_enc_L)

    def _side_by_side(self, x_BXiDi: Tensor, b_enc_L: Tensor | None) -> Tensor:
        """Every site's pre-activations; where no graph is wanted each is written straight to its place."""
        graph = torch.is_grad_enabled()
        dtype = torch.result_type(x_BXiDi, self.W_enc_PDiLp)
        z_BL = x_BXiDi.new_empty(0 if graph else len(x_BXiDi), self.n_latents, dtype=dtype)
        sites = []
        for p, (x_BDi, W_DiLp) in enumerate(zip(x_BXiDi.unbind(1), self.W_enc_PDiLp)):
            out = None if graph else z_BL[:, self._site(p)]
            if b_enc_L is None:
                sites.append(torch.mm(x_BDi, W_DiLp, out=out))
            else:
                sites.append(torch.addmm(b_enc_L[self._site(p)], x_BDi, W_DiLp, out=out))
        return torch.cat(sites, dim=-1) if graph else z_BL

    def attach(
        self, values_N: Float[Tensor, " N"], x_BXiDi: Float[Tensor, "B P Di"], pattern: Pattern
    ) -> Float[Tensor, " N"]:
        attached_N = torch.empty_like(values_N)
        for p, (x_BDi, W_DiLp) in enumerate(zip(x_BXiDi.unbind(1), self.W_enc_PDiLp)):
            own_n, own = pattern.columns(self._site(p))
            b_Lp = None if self.b_enc_L is None else self.b_enc_L[self._site(p)]
            own_values_n = attach_linear(values_N.index_select(0, own_n), x_BDi, W_DiLp, b_Lp, own)
            attached_N = attached_N.index_copy(0, own_n, own_values_n)
        return attached_N

    @torch.no_grad()
    def assign_(self, W_enc_XiDiL: Float[Tensor, "P Di L"]) -> None:
        real_PDi = real_coordinates(self.in_dims, self.d_in, self.widths_Xi).to(self.W_enc_PDiLp.device)
        for p in range(n_sites(self.in_dims)):
            self.W_enc_PDiLp[p].copy_(W_enc_XiDiL[p, :, self._site(p)] * real_PDi[p, :, None])

    @torch.no_grad()
    def folded(
        self, scale_Xi: Float[Tensor, " P"], shift_XiDi: Float[Tensor, "P Di"], a_L: Float[Tensor, " L"]
    ) -> "PerSiteEncoder":
        raw = evolve(self, bias=True).to(self.W_enc_PDiLp)
        a_PLp = a_L.reshape(-1, self.n_latents_per_site)
        raw.W_enc_PDiLp.copy_(self.W_enc_PDiLp * scale_Xi[:, None, None] * a_PLp[:, None, :])
        bias_L = 0 if self.b_enc_L is None else self.b_enc_L * a_L
        assert raw.b_enc_L is not None
        raw.b_enc_L.copy_(bias_L - raw.linear(shift_XiDi[None])[0])
        return raw
