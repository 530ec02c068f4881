"""Decoders: latents in, reconstructions of scaled activations out.

Each is a family inside the space of dense decoders: `dense` embeds it there, `assign_` projects back.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crosscode.checks import at_most, count, instance
from crosscode.errors import BadInput
from crosscode.kernels.sparse import row_norms
from crosscode.latents import Latents, at_least_fp32
from crosscode.models.masks import SiteMask, among_sites
from crosscode.module import evolve, module, randomised
from crosscode.one_definition import OneDefinition, form_of, true_of
from crosscode.shapes import Dims, check_widths, checked_dims, n_sites, real_coordinates


class Decoder(OneDefinition, nn.Module):
    """`f W_dec + b_dec`. Subclass it with `@module`, write `dense` and `assign_`; the rest follows.

    Attributes:
        n_latents: how many latents (`L`).
        out_dims: output crosscoding dimensions `Xo`.
        d_out: width of the activations written (`Do`), the widest if they differ.
        widths_Xo: real width of each site in row-major order where they differ; the rest is padding.
        b_dec_XoDo: the bias; None if there is none.
    """

    n_latents: int
    out_dims: Dims
    d_out: int
    widths_Xo: Dims | None = None
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
        raw = DenseDecoder(self.n_latents, self.out_dims, self.d_out, True, self.widths_Xo).to(W_dec_LXoDo)
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
    """

    n_latents: int
    out_dims: Dims
    d_out: int
    bias: bool = True
    widths_Xo: Dims | None = None

    def __attrs_post_init__(self) -> None:
        self.out_dims = checked_dims("DenseDecoder.out_dims", self.out_dims)
        count("DenseDecoder.n_latents", self.n_latents)
        count("DenseDecoder.d_out", self.d_out)
        check_widths("widths_Xo", self.out_dims, self.d_out, self.widths_Xo)
        self.W_dec_LXoDo = nn.Parameter(torch.zeros(self.n_latents, *self.out_dims, self.d_out))
        self.b_dec_XoDo = _make_bias(self.bias, self.out_dims, self.d_out)

    def writes_LXo(self) -> Bool[Tensor, "L *Xo"]:
        return self.W_dec_LXoDo.new_ones(self.n_latents, *self.out_dims, dtype=torch.bool)

    def shared_L(self) -> Bool[Tensor, " L"]:
        return self.W_dec_LXoDo.new_zeros(self.n_latents, dtype=torch.bool)

    def dense(self) -> Float[Tensor, "L *Xo Do"]:
        return self.W_dec_LXoDo

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L *Xo Do"]) -> None:
        self.W_dec_LXoDo.copy_(W_dec_LXoDo)
        self.W_dec_LXoDo.mul_(real_coordinates(self.out_dims, self.d_out, self.widths_Xo).to(self.W_dec_LXoDo))


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
class MaskedDecoder(Decoder):
    """Each group of latents writes its own sites; directions to other sites do not exist.

    `W_dec_LgXgDo[g]` has the `Lg` latents of group g and its `Xg` sites. With site i's latents writing to sites i,
    i + 1, … it is the decoder of the compound CLT (Circuit Tracing, 2025, "Architecture").

    Args:
        mask: the groups of latents, and the sites that each writes.
        out_dims: output crosscoding dimensions `Xo`.
        d_out: width of the activations written (`Do`), the widest if they differ.
        bias: whether there is a `b_dec_XoDo`, of every site.
        widths_Xo: real width of each site in row-major order where they differ; the rest is padding.
    """

    mask: SiteMask
    out_dims: Dims
    d_out: int
    bias: bool = True
    widths_Xo: Dims | None = None

    def __attrs_post_init__(self) -> None:
        self.out_dims = checked_dims("MaskedDecoder.out_dims", self.out_dims)
        count("MaskedDecoder.d_out", self.d_out)
        instance("MaskedDecoder.mask", self.mask, SiteMask, "a SiteMask")
        self.mask.check(self.out_dims)
        check_widths("widths_Xo", self.out_dims, self.d_out, self.widths_Xo)
        self.W_dec_LgXgDo = nn.ParameterList(
            nn.Parameter(torch.zeros(n, len(sites), self.d_out)) for n, sites in self.mask.groups
        )
        self.b_dec_XoDo = _make_bias(self.bias, self.out_dims, self.d_out)

    @property
    def n_latents(self) -> int:  # type: ignore[override]
        return self.mask.n_latents

    @property
    def W_dec_LXoDo(self) -> Float[Tensor, "L *Xo Do"]:
        """The directions as a dense tensor, differentiable; to be read, not written (`assign_` writes)."""
        return self.dense()

    def writes_LXo(self) -> Bool[Tensor, "L *Xo"]:
        return self.mask.allowed_LX(self.out_dims).to(self.W_dec_LgXgDo[0].device)

    def shared_L(self) -> Bool[Tensor, " L"]:
        return torch.zeros(self.n_latents, dtype=torch.bool, device=self.W_dec_LgXgDo[0].device)

    def _groups(self) -> Iterator[tuple[slice, Sequence[int], Tensor]]:
        """Each group's latents, sites and directions."""
        for latents, (_, sites), W_LgXgDo in zip(self.mask.latents(), self.mask.groups, self.W_dec_LgXgDo):
            yield latents, sites, W_LgXgDo

    def dense(self) -> Float[Tensor, "L *Xo Do"]:
        n = n_sites(self.out_dims)
        W_LXDo = torch.cat([among_sites(W_LgXgDo, sites, n) for _, sites, W_LgXgDo in self._groups()])
        return W_LXDo.reshape(self.n_latents, *self.out_dims, self.d_out)

    def norms_LXo(self) -> Float[Tensor, "L *Xo"]:
        n = n_sites(self.out_dims)
        norms_LX = torch.cat([among_sites(row_norms(W_LgXgDo), sites, n) for _, sites, W_LgXgDo in self._groups()])
        return norms_LX.reshape(self.n_latents, *self.out_dims)

    def linear(self, latents: Latents) -> Float[Tensor, "B *Xo Do"]:
        recon_BXDo: Tensor | None = None
        for own, sites, W_LgXgDo in self._groups():
            written_BO = latents.slice(own) @ rearrange(W_LgXgDo, "Lg Xg Do -> Lg (Xg Do)")
            written_BXgDo = written_BO.reshape(len(latents), -1, self.d_out).to(at_least_fp32(written_BO))
            written_BXDo = among_sites(written_BXgDo, sites, n_sites(self.out_dims))
            recon_BXDo = written_BXDo if recon_BXDo is None else recon_BXDo + written_BXDo
        assert recon_BXDo is not None
        return recon_BXDo.to(written_BO.dtype).reshape(len(latents), *self.out_dims, self.d_out)

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L *Xo Do"]) -> None:
        real_XoDo = real_coordinates(self.out_dims, self.d_out, self.widths_Xo).to(W_dec_LXoDo)
        W_LXDo = (W_dec_LXoDo * real_XoDo).reshape(self.n_latents, -1, self.d_out)
        for latents, sites, W_LgXgDo in self._groups():
            W_LgXgDo.copy_(W_LXDo[latents, list(sites)])

    @torch.no_grad()
    def folded(
        self, scale_Xo: Float[Tensor, "*Xo"], shift_XoDo: Float[Tensor, "*Xo Do"], a_L: Float[Tensor, " L"]
    ) -> "MaskedDecoder":
        raw = evolve(self, bias=True).to(self.W_dec_LgXgDo[0])
        raw.assign_(self.dense() / a_L.reshape(-1, *[1] * (len(self.out_dims) + 1)) / scale_Xo[..., None])
        assert raw.b_dec_XoDo is not None
        raw.b_dec_XoDo.copy_(_raw_bias(self.b_dec_XoDo, scale_Xo, shift_XoDo))
        return raw


@module
class LowRankMaskedDecoder(Decoder):
    """A `MaskedDecoder` whose directions to all but the first site of a group have a low rank.

    Latents write their own site, the group's first, with free directions `W_own_LgDo`, and each later site of the group
    with `U_LgR V_RDo`: it costs `R (Lg + Do)` weights instead of `Lg Do`. (`Xg` are a group's later sites here.)

    Args:
        mask: the groups of latents, and the sites that each writes; the first is the one of full rank.
        out_dims: output crosscoding dimensions `Xo`.
        d_out: width of the activations written (`Do`), the widest if they differ.
        rank: the rank of directions to each other site (`R`).
        bias: whether there is a `b_dec_XoDo`, of every site.
        widths_Xo: real width of each site in row-major order where they differ; the rest is padding.
    """

    mask: SiteMask
    out_dims: Dims
    d_out: int
    rank: int
    bias: bool = True
    widths_Xo: Dims | None = None

    def __attrs_post_init__(self) -> None:
        self.out_dims = checked_dims("LowRankMaskedDecoder.out_dims", self.out_dims)
        count("LowRankMaskedDecoder.d_out", self.d_out)
        instance("LowRankMaskedDecoder.mask", self.mask, SiteMask, "a SiteMask")
        self.mask.check(self.out_dims)
        count("LowRankMaskedDecoder.rank", self.rank)
        at_most("LowRankMaskedDecoder.rank", self.rank, self.d_out, "d_out")
        check_widths("widths_Xo", self.out_dims, self.d_out, self.widths_Xo)
        groups = [(n, len(sites) - 1) for n, sites in self.mask.groups]
        self.W_own_LgDo = nn.ParameterList(nn.Parameter(torch.zeros(n, self.d_out)) for n, _ in groups)
        self.U_LgXgR = nn.ParameterList(nn.Parameter(torch.zeros(n, later, self.rank)) for n, later in groups)
        self.V_XgRDo = nn.ParameterList(nn.Parameter(torch.zeros(later, self.rank, self.d_out)) for _, later in groups)
        self.b_dec_XoDo = _make_bias(self.bias, self.out_dims, self.d_out)

    @property
    def n_latents(self) -> int:  # type: ignore[override]
        return self.mask.n_latents

    def dense(self) -> Float[Tensor, "L *Xo Do"]:
        n, groups = n_sites(self.out_dims), []
        for W_LgDo, U_LgXgR, V_XgRDo, (_, sites) in zip(self.W_own_LgDo, self.U_LgXgR, self.V_XgRDo, self.mask.groups):
            later_LgXgDo = einsum(U_LgXgR, V_XgRDo, "Lg Xg R, Xg R Do -> Lg Xg Do")
            groups.append(among_sites(torch.cat([W_LgDo[:, None], later_LgXgDo], dim=1), sites, n))
        return torch.cat(groups).reshape(self.n_latents, *self.out_dims, self.d_out)

    def linear(self, latents: Latents) -> Float[Tensor, "B *Xo Do"]:
        recon_BXDo: Tensor | None = None
        for own, W_LgDo, U_LgXgR, V_XgRDo, (_, sites) in zip(
            self.mask.latents(), self.W_own_LgDo, self.U_LgXgR, self.V_XgRDo, self.mask.groups
        ):
            # One product with the codes, of own directions and all factors side by side.
            product_BO = latents.slice(own) @ torch.cat([W_LgDo, U_LgXgR.flatten(1)], dim=1)
            own_BDo, inner_BXgR = product_BO[:, : self.d_out], product_BO[:, self.d_out :]
            inner_BXgR = inner_BXgR.reshape(len(latents), len(sites) - 1, self.rank)
            later_BXgDo = einsum(inner_BXgR, V_XgRDo, "B Xg R, Xg R Do -> B Xg Do")
            written_BXgDo = torch.cat([own_BDo[:, None], later_BXgDo], dim=1).to(at_least_fp32(product_BO))
            written_BXDo = among_sites(written_BXgDo, sites, n_sites(self.out_dims))
            recon_BXDo = written_BXDo if recon_BXDo is None else recon_BXDo + written_BXDo
        assert recon_BXDo is not None
        return recon_BXDo.to(product_BO.dtype).reshape(len(latents), *self.out_dims, self.d_out)

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L *Xo Do"]) -> None:
        real_XoDo = real_coordinates(self.out_dims, self.d_out, self.widths_Xo).to(W_dec_LXoDo)
        W_LXDo = (W_dec_LXoDo * real_XoDo).reshape(self.n_latents, -1, self.d_out)
        for g, (latents, (_, sites)) in enumerate(zip(self.mask.latents(), self.mask.groups)):
            self.W_own_LgDo[g].copy_(W_LXDo[latents, sites[0]])
            for x, site in enumerate(sites[1:]):
                U_Lgr, S_r, V_rDo = torch.linalg.svd(W_LXDo[latents, site], full_matrices=False)
                root_r = S_r[: self.rank].sqrt()
                self.U_LgXgR[g][:, x].zero_()[:, : len(root_r)] = U_Lgr[:, : self.rank] * root_r
                self.V_XgRDo[g][x].zero_()[: len(root_r)] = V_rDo[: self.rank] * root_r[:, None]

    @torch.no_grad()
    def folded(
        self, scale_Xo: Float[Tensor, "*Xo"], shift_XoDo: Float[Tensor, "*Xo Do"], a_L: Float[Tensor, " L"]
    ) -> "LowRankMaskedDecoder":
        raw = evolve(self, bias=True).to(self.W_own_LgDo[0])
        scale_X, groups = scale_Xo.flatten(), zip(self.mask.latents(), self.mask.groups)
        for g, (latents, (_, sites)) in enumerate(groups):
            raw.W_own_LgDo[g].copy_(self.W_own_LgDo[g] / a_L[latents, None] / scale_X[sites[0]])
            raw.U_LgXgR[g].copy_(self.U_LgXgR[g] / a_L[latents, None, None])
            raw.V_XgRDo[g].copy_(self.V_XgRDo[g] / scale_X[list(sites[1:])][:, None, None])
        assert raw.b_dec_XoDo is not None
        raw.b_dec_XoDo.copy_(_raw_bias(self.b_dec_XoDo, scale_Xo, shift_XoDo))
        return raw
