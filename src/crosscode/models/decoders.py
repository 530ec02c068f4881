"""Decoders: latents in, reconstructions of scaled activations out.

Each is a family inside the space of dense decoders: `dense` embeds it there, `assign_` projects back.
"""

import copy

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crosscode.checks import at_most, count
from crosscode.errors import BadInput
from crosscode.kernels.sparse import row_norms
from crosscode.latents import Latents, at_least_fp32
from crosscode.models.masks import SiteMask
from crosscode.module import evolve, module, randomised
from crosscode.one_definition import OneDefinition, form_of, true_of
from crosscode.shapes import Dims, checked_dims, real_coordinates


class Decoder(OneDefinition, nn.Module):
    """`f W_dec + b_dec`. Subclass it with `@module`, write `dense` and `assign_`; the rest follows.

    Attributes:
        n_latents: how many latents (`L`).
        out_dims: output crosscoding dimensions `Xo`.
        d_out: width of the activations written (`Do`), the widest if they differ.
        widths_Xo: real width of each site in row-major order where they differ; the rest is padding.
        mask: sites each latent may write to; None for all.
        b_dec_XoDo: the bias; None if there is none.
    """

    n_latents: int
    out_dims: Dims
    d_out: int
    widths_Xo: Dims | None = None
    mask: SiteMask | None = None
    b_dec_XoDo: nn.Parameter | None

    def dense(self) -> Float[Tensor, "L *Xo Do"]:
        """The directions as a dense `W_dec_LXoDo` (differentiable)."""
        raise NotImplementedError(f"{type(self).__name__} has no directions")

    def assign_(self, W_dec_LXoDo: Float[Tensor, "L *Xo Do"]) -> None:
        """Set the directions to the projection of dense ones."""
        raise BadInput(f"{type(self).__name__} has no directions to be set: write its method assign_.")

    @form_of("dense")
    def norms_LXo(self) -> Float[Tensor, "L *Xo"]:
        """Norm of each latent's direction at each site (differentiable)."""
        return row_norms(self.dense())

    @form_of("dense")
    def linear(self, latents: Latents) -> Float[Tensor, "B *Xo Do"]:
        """`f W_dec`, without the bias."""
        recon_BO = latents @ rearrange(self.dense(), "L ... -> L (...)")
        return recon_BO.reshape(len(latents), *self.out_dims, self.d_out)

    @form_of("dense")
    def forward(self, latents: Latents) -> Float[Tensor, "B *Xo Do"]:
        """`f W_dec + b_dec`."""
        return _add_bias(self.linear(latents), self.b_dec_XoDo)

    @true_of("dense")
    @torch.no_grad()
    def writes_LXo(self) -> Bool[Tensor, "L *Xo"]:
        """The sites that each latent can write: its direction there is not 0 by construction.

        Found by giving a copy other parameters.
        """
        return (randomised(copy.deepcopy(self)).dense() != 0).any(-1)

    @true_of("dense")
    @torch.no_grad()
    def shared_L(self) -> Bool[Tensor, " L"]:
        """Which latents write one and the same to every entry of the first crosscoding dimension by construction.

        Where that is the models, such latents are shared between them. Found by giving a copy other parameters.
        """
        W_dec_LXoDo = randomised(copy.deepcopy(self)).dense()
        if not self.out_dims or self.out_dims[0] == 1:
            return W_dec_LXoDo.new_zeros(self.n_latents, dtype=torch.bool)
        same_LO = (W_dec_LXoDo == W_dec_LXoDo[:, :1]).flatten(1)
        return same_LO.all(-1) & (W_dec_LXoDo != 0).flatten(1).any(-1)

    @true_of("dense")
    @torch.no_grad()
    def folded(
        self, scale_Xo: Float[Tensor, "*Xo"], shift_XoDo: Float[Tensor, "*Xo Do"], a_L: Float[Tensor, " L"]
    ) -> "Decoder":
        """A decoder to raw activations of latents that were multiplied by `a_L`."""
        W_dec_LXoDo = self.dense()
        raw = DenseDecoder(self.n_latents, self.out_dims, self.d_out, True, self.widths_Xo, self.mask).to(W_dec_LXoDo)
        a_LXoDo = a_L.reshape(-1, *[1] * (len(self.out_dims) + 1))
        raw.W_dec_LXoDo.copy_(W_dec_LXoDo / a_LXoDo / scale_Xo[..., None])
        assert raw.b_dec_XoDo is not None
        raw.b_dec_XoDo.copy_(_raw_bias(self.b_dec_XoDo, scale_Xo, shift_XoDo))
        return raw


def _make_bias(bias: bool, out_dims: Dims, d_out: int) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(*out_dims, d_out)) if bias else None


def _add_bias(recon_BXoDo: Tensor, b_dec_XoDo: Tensor | None) -> Tensor:
    return recon_BXoDo if b_dec_XoDo is None else recon_BXoDo + b_dec_XoDo


def _raw_bias(b_dec_XoDo: Tensor | None, scale_Xo: Tensor, shift_XoDo: Tensor) -> Tensor:
    return shift_XoDo if b_dec_XoDo is None else b_dec_XoDo / scale_Xo[..., None] + shift_XoDo


@module
class DenseDecoder(Decoder):
    """Every latent writes to every site: `W_dec_LXoDo`, one bias a site.

    Directions start at zero until an `InitStrategy` sets them.

    Args:
        n_latents: how many latents (`L`).
        out_dims: output crosscoding dimensions `Xo`.
        d_out: width of the activations written (`Do`), the widest if they differ.
        bias: whether there is a `b_dec_XoDo`.
        widths_Xo: real width of each site in row-major order where they differ; the rest is padding.
        mask: sites each latent may write to; None for all.
    """

    n_latents: int
    out_dims: Dims
    d_out: int
    bias: bool = True
    widths_Xo: Dims | None = None
    mask: SiteMask | None = None

    def __attrs_post_init__(self) -> None:
        self.out_dims = checked_dims("DenseDecoder.out_dims", self.out_dims)
        count("DenseDecoder.n_latents", self.n_latents)
        count("DenseDecoder.d_out", self.d_out)
        self.W_dec_LXoDo = nn.Parameter(torch.zeros(self.n_latents, *self.out_dims, self.d_out))
        self.b_dec_XoDo = _make_bias(self.bias, self.out_dims, self.d_out)
        self.allowed_LXoDo: Tensor | None
        allowed = None if self.mask is None else self.mask.allowed_LX(self.n_latents, self.out_dims)[..., None]
        self.register_buffer("allowed_LXoDo", None if allowed is None else allowed.bool(), persistent=False)

    def writes_LXo(self) -> Bool[Tensor, "L *Xo"]:
        if self.allowed_LXoDo is None:
            return self.W_dec_LXoDo.new_ones(self.n_latents, *self.out_dims, dtype=torch.bool)
        return self.allowed_LXoDo[..., 0]

    def shared_L(self) -> Bool[Tensor, " L"]:
        return self.W_dec_LXoDo.new_zeros(self.n_latents, dtype=torch.bool)

    def dense(self) -> Float[Tensor, "L *Xo Do"]:
        return self.W_dec_LXoDo if self.allowed_LXoDo is None else self.W_dec_LXoDo * self.allowed_LXoDo

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L *Xo Do"]) -> None:
        self.W_dec_LXoDo.copy_(W_dec_LXoDo)
        self.W_dec_LXoDo.mul_(real_coordinates(self.out_dims, self.d_out, self.widths_Xo).to(self.W_dec_LXoDo))
        if self.allowed_LXoDo is not None:
            self.W_dec_LXoDo.mul_(self.allowed_LXoDo)


@module
class SharedDecoder(Decoder):
    """The first `n_shared` latents write the same vector to every model (February 2025 update).

    The shared half is one parameter `W_shared_LsPD`, broadcast over models: autograd sums the models' gradients,
    the halves cannot drift apart, a shared gradient counts once in clipping, and it is decoded once, not M times.

    Args:
        n_latents: how many latents (`L`).
        n_shared: how many of them, the first ones, are shared (`Ls`).
        out_dims: `(n_models, *rest)`: the first crosscoding dimension is the models.
        d_out: width of the activations written (`Do`).
        bias: whether there is a `b_dec_XoDo`, one a model and site.
        widths_Xo: real width of each site; all models must agree where latents are shared.
    """

    n_latents: int
    n_shared: int
    out_dims: Dims
    d_out: int
    bias: bool = True
    widths_Xo: Dims | None = None

    def __attrs_post_init__(self) -> None:
        self.out_dims = checked_dims("SharedDecoder.out_dims", self.out_dims)
        count("SharedDecoder.n_latents", self.n_latents)
        count("SharedDecoder.n_shared", self.n_shared, least=0)
        count("SharedDecoder.d_out", self.d_out)
        at_most("SharedDecoder.n_shared", self.n_shared, self.n_latents, "n_latents")
        if len(self.out_dims) < 1:
            raise BadInput("SharedDecoder.out_dims=() has no model dimension: latents are shared between models.")
        real_MXD = real_coordinates(self.out_dims, self.d_out, self.widths_Xo)
        if self.n_shared and not (real_MXD == real_MXD[:1]).all():
            raise BadInput(
                f"SharedDecoder.widths_Xo={self.widths_Xo} differ between models: shared latents need equal widths."
            )
        self.W_shared_LsPD = nn.Parameter(torch.zeros(self.n_shared, *self.out_dims[1:], self.d_out))
        self.W_exclusive_LfMPD = nn.Parameter(torch.zeros(self.n_latents - self.n_shared, *self.out_dims, self.d_out))
        self.b_dec_XoDo = _make_bias(self.bias, self.out_dims, self.d_out)

    def writes_LXo(self) -> Bool[Tensor, "L M *P"]:
        return self.W_shared_LsPD.new_ones(self.n_latents, *self.out_dims, dtype=torch.bool)

    def shared_L(self) -> Bool[Tensor, " L"]:
        index_L = torch.arange(self.n_latents, device=self.W_shared_LsPD.device)
        return index_L < (self.n_shared if self.out_dims[0] > 1 else 0)

    @property
    def W_dec_LXoDo(self) -> Float[Tensor, "L M *P D"]:
        """The directions as a dense tensor, differentiable; to be read, not written (`assign_` writes)."""
        return self.dense()

    def dense(self) -> Float[Tensor, "L M *P D"]:
        shared_LsMPD = repeat(self.W_shared_LsPD, "Ls ... -> Ls M ...", M=self.out_dims[0])
        return torch.cat([shared_LsMPD, self.W_exclusive_LfMPD])

    def norms_LXo(self) -> Float[Tensor, "L M *P"]:
        shared_LsMP = repeat(row_norms(self.W_shared_LsPD), "Ls ... -> Ls M ...", M=self.out_dims[0])
        return torch.cat([shared_LsMP, row_norms(self.W_exclusive_LfMPD)])

    def linear(self, latents: Latents) -> Float[Tensor, "B M *P D"]:
        shared_BO = latents.slice(slice(0, self.n_shared)) @ rearrange(self.W_shared_LsPD, "Ls ... -> Ls (...)")
        shared_BPD = shared_BO.reshape(len(latents), 1, *self.out_dims[1:], self.d_out)
        own_BO = latents.slice(slice(self.n_shared, None)) @ rearrange(self.W_exclusive_LfMPD, "Lf ... -> Lf (...)")
        return own_BO.reshape(len(latents), *self.out_dims, self.d_out) + shared_BPD

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L M *P D"]) -> None:
        real_MPD = real_coordinates(self.out_dims, self.d_out, self.widths_Xo).to(self.W_shared_LsPD)
        W_dec_LMPD = W_dec_LXoDo * real_MPD
        self.W_shared_LsPD.copy_(reduce(W_dec_LMPD[: self.n_shared], "Ls M ... -> Ls ...", "mean"))
        self.W_exclusive_LfMPD.copy_(W_dec_LMPD[self.n_shared :])


@module
class CausalDecoder(Decoder):
    """Site i's latents write to sites i, i + 1, …: the triangle of the compound CLT, same layer included.

    Latents lie end to end, `L = P x Lp`; `W_dec_LpPD[i]` has shape `(Lp, P - i, D)`.
    Source: Circuit Tracing (2025), "Architecture": `yhat_j = sum_{i <= j} W_dec_{i->j} a_i`.

    Args:
        n_latents_per_site: how many latents each site has (`Lp`).
        out_dims: `(n_sites,)`.
        d_out: width of the activations written (`Do`).
        bias: whether there is a `b_dec_XoDo`, one a target site.
        widths_Xo: real width of each site where they differ.
    """

    n_latents_per_site: int
    out_dims: Dims
    d_out: int
    bias: bool = True
    widths_Xo: Dims | None = None

    def __attrs_post_init__(self) -> None:
        self.out_dims = checked_dims("CausalDecoder.out_dims", self.out_dims, n=1)
        count("CausalDecoder.n_latents_per_site", self.n_latents_per_site)
        count("CausalDecoder.d_out", self.d_out)
        (n_hookpoints,) = self.out_dims
        self.W_dec_LpPD = nn.ParameterList(
            nn.Parameter(torch.zeros(self.n_latents_per_site, n_hookpoints - i, self.d_out))
            for i in range(n_hookpoints)
        )
        self.b_dec_XoDo = _make_bias(self.bias, self.out_dims, self.d_out)

    @property
    def n_latents(self) -> int:  # type: ignore[override]
        return self.out_dims[0] * self.n_latents_per_site

    def _site(self, i: int) -> slice:
        return slice(i * self.n_latents_per_site, (i + 1) * self.n_latents_per_site)

    @property
    def W_dec_LXoDo(self) -> Float[Tensor, "L P D"]:
        """The directions as a dense tensor, differentiable; to be read, not written (`assign_` writes)."""
        return self.dense()

    def dense(self) -> Float[Tensor, "L P D"]:
        return torch.cat([F.pad(W_LpPD, (0, 0, i, 0)) for i, W_LpPD in enumerate(self.W_dec_LpPD)])

    def norms_LXo(self) -> Float[Tensor, "L P"]:
        return torch.cat([F.pad(row_norms(W_LpPD), (i, 0)) for i, W_LpPD in enumerate(self.W_dec_LpPD)])

    def linear(self, latents: Latents) -> Float[Tensor, "B P D"]:
        sums = at_least_fp32(latents.values)
        recon_BPD = latents.values.new_zeros(len(latents), *self.out_dims, self.d_out, dtype=sums)
        for i, W_LpPD in enumerate(self.W_dec_LpPD):
            written_BO = latents.slice(self._site(i)) @ rearrange(W_LpPD, "Lp P D -> Lp (P D)")
            written_BPD = written_BO.reshape(len(latents), -1, self.d_out)
            recon_BPD = recon_BPD + F.pad(written_BPD, (0, 0, i, 0))
        return recon_BPD.to(written_BPD.dtype)

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L P D"]) -> None:
        real_PD = real_coordinates(self.out_dims, self.d_out, self.widths_Xo).to(W_dec_LXoDo)
        for i, W_LpPD in enumerate(self.W_dec_LpPD):
            W_LpPD.copy_((W_dec_LXoDo * real_PD)[self._site(i), i:])

    @torch.no_grad()
    def folded(
        self, scale_Xo: Float[Tensor, " P"], shift_XoDo: Float[Tensor, "P D"], a_L: Float[Tensor, " L"]
    ) -> "CausalDecoder":
        raw = evolve(self, bias=True).to(self.W_dec_LpPD[0])
        raw.assign_(self.dense() / a_L[:, None, None] / scale_Xo[:, None])
        assert raw.b_dec_XoDo is not None
        raw.b_dec_XoDo.copy_(_raw_bias(self.b_dec_XoDo, scale_Xo, shift_XoDo))
        return raw
