"""Encoders: scaled activations in, pre-activations out."""

import copy

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crosscode.checks import count
from crosscode.errors import BadInput
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.sparse import attach_linear
from crosscode.models.masks import SiteMask
from crosscode.module import evolve, module, randomised
from crosscode.one_definition import OneDefinition, definition, form_of, true_of
from crosscode.shapes import Dims, checked_dims, n_sites, real_coordinates

Which = Int[Tensor, " l"] | slice
"""Some latents: their numbers, or a range."""


class Encoder(OneDefinition, nn.Module):
    """Pre-activations of scaled activations. Subclass it with `@module` and write `forward`; the rest follows.

    Whatever reads its weights, `assign_` and `weights` (starts that set the encoder) and `folded` (exports), must be
    written by encoders that have such.

    Attributes:
        in_dims: input crosscoding dimensions `Xi`.
        d_in: width of the activations read (`Di`), the widest if they differ.
        n_latents: how many latents (`L`).
        widths_Xi: real width of each site in row-major order where they differ; the rest is padding.
        b_enc_L: the bias, which `forward` adds to everything else; None if there is none.
    """

    in_dims: Dims
    d_in: int
    n_latents: int
    widths_Xi: Dims | None = None
    b_enc_L: nn.Parameter | None

    def forward(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B L"]:
        """Pre-activations `z_BL`, bias included."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    @property
    @true_of("forward")
    def is_affine(self) -> bool:
        """Whether the pre-activations of a mean of inputs are the mean of their pre-activations."""
        return False

    @form_of("forward")
    def of_latents(self, x_BXiDi: Float[Tensor, "B *Xi Di"], latents_l: Which) -> Float[Tensor, "B l"]:
        """Pre-activations of some latents, bias included."""
        pre_Bl: Tensor = self(x_BXiDi)[:, latents_l]
        return pre_Bl

    @form_of("forward")
    def linear(self, x_BXiDi: Float[Tensor, "B *Xi Di"], latents_l: Which = slice(None)) -> Float[Tensor, "B l"]:
        """Pre-activations before the bias, of all latents or of some: calibration sets the bias by them."""
        pre_Bl = self.of_latents(x_BXiDi, latents_l)
        return pre_Bl if self.b_enc_L is None else pre_Bl - self.b_enc_L[latents_l]

    @form_of("forward")
    def attach(
        self, values_N: Float[Tensor, " N"], x_BXiDi: Float[Tensor, "B *Xi Di"], pattern: Pattern
    ) -> Float[Tensor, " N"]:
        """Chosen pre-activations, which were computed without a graph, with their gradient."""
        return pattern.of(self(x_BXiDi)).to(values_N.dtype)

    @form_of("forward")
    def as_product(
        self, x_BXiDi: Float[Tensor, "B *Xi Di"]
    ) -> tuple[Float[Tensor, "B I"], Float[Tensor, "I L"], Float[Tensor, " L"] | None] | None:
        """`x`, `W` and `b` of which `x W + b` are the pre-activations; None if they are no such product."""
        return None

    @form_of("forward")
    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        """The weights as a dense `W_enc_XiDiL` (differentiable)."""
        raise BadInput(f"{type(self).__name__} has no dense weights to be read: write its method weights.")

    def assign_(self, W_enc_XiDiL: Float[Tensor, "*Xi Di L"]) -> None:
        """Set the weights to the projection of dense ones."""
        raise BadInput(f"{type(self).__name__} has no dense weights to be set: write its method assign_.")

    @true_of("forward")
    @torch.no_grad()
    def reads_LXi(self) -> Bool[Tensor, "L *Xi"]:
        """The sites that each latent can read: its pre-activation there is not deaf by construction.

        Found by giving a copy other parameters, and other activations at one site after the other.
        """
        twin = randomised(copy.deepcopy(self)).eval()
        like = next(twin.parameters(), torch.zeros(()))
        generator = torch.Generator().manual_seed(0)
        n, shape = n_sites(self.in_dims), (8, n_sites(self.in_dims), self.d_in)
        x_BXD, other_BXD = (torch.randn(shape, generator=generator).to(like) for _ in range(2))
        pre_BL = twin(x_BXD.reshape(8, *self.in_dims, self.d_in))
        reads_XL = []
        for i in range(n):
            moved_BXD = x_BXD.clone()
            moved_BXD[:, i] = other_BXD[:, i]
            reads_XL.append((twin(moved_BXD.reshape(8, *self.in_dims, self.d_in)) != pre_BL).any(0))
        return torch.stack(reads_XL, dim=-1).reshape(self.n_latents, *self.in_dims)

    @true_of("forward")
    def folded(
        self, scale_Xi: Float[Tensor, "*Xi"], shift_XiDi: Float[Tensor, "*Xi Di"], a_L: Float[Tensor, " L"]
    ) -> "Encoder":
        """An encoder of raw activations whose pre-activations are multiplied by `a_L`."""
        raise BadInput(f"{type(self).__name__} cannot be folded: write its method folded.")


def _make_bias(n_latents: int, bias: bool) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(n_latents)) if bias else None


class AffineEncoder(Encoder):
    """`z_BL = sum_{Xi,Di} x_BXiDi W_XiDiL + b_enc_L`. Subclass it with `@module` and write `weights`; the rest follows.

    Tied and low-rank encoders are such: `weights` computes them. `assign_` is for starts that set the encoder.
    """

    mask: SiteMask | None = None
    is_affine = True

    @definition
    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        """The weights as a dense `W_enc_XiDiL` (differentiable)."""
        raise NotImplementedError(f"{type(self).__name__} has no weights")

    def _W_IL(self) -> Float[Tensor, "I L"]:
        return rearrange(self.weights(), "... Di L -> (... Di) L")

    def forward(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B L"]:
        if self.b_enc_L is None:
            return self.linear(x_BXiDi)
        return torch.addmm(self.b_enc_L, rearrange(x_BXiDi, "B ... -> B (...)"), self._W_IL())

    def of_latents(self, x_BXiDi: Float[Tensor, "B *Xi Di"], latents_l: Which) -> Float[Tensor, "B l"]:
        linear_Bl = self.linear(x_BXiDi, latents_l)
        return linear_Bl if self.b_enc_L is None else linear_Bl + self.b_enc_L[latents_l]

    def linear(self, x_BXiDi: Float[Tensor, "B *Xi Di"], latents_l: Which = slice(None)) -> Float[Tensor, "B l"]:
        W_IL = self._W_IL()
        all_of_them = isinstance(latents_l, slice) and latents_l == slice(None)
        return rearrange(x_BXiDi, "B ... -> B (...)") @ (W_IL if all_of_them else W_IL[:, latents_l])

    def as_product(
        self, x_BXiDi: Float[Tensor, "B *Xi Di"]
    ) -> tuple[Float[Tensor, "B I"], Float[Tensor, "I L"], Float[Tensor, " L"] | None]:
        return rearrange(x_BXiDi, "B ... -> B (...)"), self._W_IL(), self.b_enc_L

    def attach(
        self, values_N: Float[Tensor, " N"], x_BXiDi: Float[Tensor, "B *Xi Di"], pattern: Pattern
    ) -> Float[Tensor, " N"]:
        x_BI = rearrange(x_BXiDi, "B ... -> B (...)")
        return attach_linear(values_N, x_BI, self._W_IL(), self.b_enc_L, pattern)

    @torch.no_grad()
    def folded(
        self, scale_Xi: Float[Tensor, "*Xi"], shift_XiDi: Float[Tensor, "*Xi Di"], a_L: Float[Tensor, " L"]
    ) -> Encoder:
        W_enc_XiDiL = self.weights()
        raw = DenseEncoder(self.in_dims, self.d_in, self.n_latents, True, self.widths_Xi, self.mask).to(W_enc_XiDiL)
        raw.W_enc_XiDiL.copy_(W_enc_XiDiL * scale_Xi[..., None, None] * a_L)
        bias_L = 0 if self.b_enc_L is None else self.b_enc_L * a_L
        assert raw.b_enc_L is not None
        raw.b_enc_L.copy_(bias_L - rearrange(shift_XiDi, "... -> (...)") @ raw._W_IL())
        return raw


@module
class DenseEncoder(AffineEncoder):
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

    def reads_LXi(self) -> Bool[Tensor, "L *Xi"]:
        if self.allowed_XiDiL is None:
            return self.W_enc_XiDiL.new_ones(self.n_latents, *self.in_dims, dtype=torch.bool)
        return rearrange(self.allowed_XiDiL.any(-2), "... L -> L ...")

    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        """The weights as a dense tensor, masked entries zero."""
        return self.W_enc_XiDiL if self.allowed_XiDiL is None else self.W_enc_XiDiL * self.allowed_XiDiL

    @torch.no_grad()
    def assign_(self, W_enc_XiDiL: Float[Tensor, "*Xi Di L"]) -> None:
        real_XiDi = real_coordinates(self.in_dims, self.d_in, self.widths_Xi).to(self.W_enc_XiDiL.device)
        self.W_enc_XiDiL.copy_(W_enc_XiDiL * real_XiDi[..., None])
        if self.allowed_XiDiL is not None:
            self.W_enc_XiDiL.mul_(self.allowed_XiDiL)


@module
class PerSiteEncoder(Encoder):
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
    is_affine = True

    def __attrs_post_init__(self) -> None:
        self.in_dims = checked_dims("PerSiteEncoder.in_dims", self.in_dims, n=1)
        count("PerSiteEncoder.d_in", self.d_in)
        count("PerSiteEncoder.n_latents_per_site", self.n_latents_per_site)
        (n_hookpoints,) = self.in_dims
        self.W_enc_PDiLp = nn.Parameter(torch.zeros(n_hookpoints, self.d_in, self.n_latents_per_site))
        self.b_enc_L = _make_bias(self.n_latents, self.bias)

    @property
    def n_latents(self) -> int:  # type: ignore[override]
        return n_sites(self.in_dims) * self.n_latents_per_site

    @property
    def W_enc_XiDiL(self) -> Float[Tensor, "P Di L"]:
        """The weights as a dense tensor, differentiable; to be read, not written (`assign_` writes)."""
        return self.weights()

    def _site(self, p: int) -> slice:
        return slice(p * self.n_latents_per_site, (p + 1) * self.n_latents_per_site)

    def reads_LXi(self) -> Bool[Tensor, "L P"]:
        eye_PP = torch.eye(n_sites(self.in_dims), device=self.W_enc_PDiLp.device, dtype=torch.bool)
        return eye_PP.repeat_interleave(self.n_latents_per_site, dim=0)

    def weights(self) -> Float[Tensor, "P Di L"]:
        """The weights as a dense tensor, block-diagonal over sites."""
        eye_PP = torch.eye(n_sites(self.in_dims), device=self.W_enc_PDiLp.device, dtype=self.W_enc_PDiLp.dtype)
        return rearrange(einsum(self.W_enc_PDiLp, eye_PP, "P Di Lp, Q P -> Q Di P Lp"), "Q Di P Lp -> Q Di (P Lp)")

    def linear(self, x_BXiDi: Float[Tensor, "B P Di"], latents_l: Which = slice(None)) -> Float[Tensor, "B l"]:
        return self._side_by_side(x_BXiDi, None)[:, latents_l]

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
