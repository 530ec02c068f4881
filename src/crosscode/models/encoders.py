"""Encoders: scaled activations in, pre-activations out."""

import copy
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crosscode.checks import count, instance
from crosscode.errors import BadInput
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.sparse import attach_linear
from crosscode.models.decoders import Decoder
from crosscode.models.masks import SiteMask, at_sites
from crosscode.module import evolve, module, randomised
from crosscode.one_definition import OneDefinition, definition, form_of, true_of
from crosscode.shapes import Dims, check_widths, checked_dims, n_sites, real_coordinates

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
        raw = DenseEncoder(self.in_dims, self.d_in, self.n_latents, True, self.widths_Xi).to(W_enc_XiDiL)
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
    """

    in_dims: Dims
    d_in: int
    n_latents: int
    bias: bool = True
    widths_Xi: Dims | None = None

    def __attrs_post_init__(self) -> None:
        self.in_dims = checked_dims("DenseEncoder.in_dims", self.in_dims)
        count("DenseEncoder.d_in", self.d_in)
        count("DenseEncoder.n_latents", self.n_latents)
        check_widths("widths_Xi", self.in_dims, self.d_in, self.widths_Xi)
        self.W_enc_XiDiL = nn.Parameter(torch.zeros(*self.in_dims, self.d_in, self.n_latents))
        self.b_enc_L = _make_bias(self.n_latents, self.bias)

    def reads_LXi(self) -> Bool[Tensor, "L *Xi"]:
        return self.W_enc_XiDiL.new_ones(self.n_latents, *self.in_dims, dtype=torch.bool)

    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        """The weights as a dense tensor."""
        return self.W_enc_XiDiL

    @torch.no_grad()
    def assign_(self, W_enc_XiDiL: Float[Tensor, "*Xi Di L"]) -> None:
        real_XiDi = real_coordinates(self.in_dims, self.d_in, self.widths_Xi).to(self.W_enc_XiDiL.device)
        self.W_enc_XiDiL.copy_(W_enc_XiDiL * real_XiDi[..., None])


@module
class SharedEncoder(AffineEncoder):
    """One encoder for all models, which reads the mean of their activations: `W_enc_PDiL` at every hookpoint.

    Args:
        in_dims: `(n_models, *rest)`: the first crosscoding dimension is the models.
        d_in: width of the activations read (`Di`).
        n_latents: how many latents (`L`).
        bias: whether there is a `b_enc_L`.
        widths_Xi: real width of each site where they differ.
    """

    in_dims: Dims
    d_in: int
    n_latents: int
    bias: bool = True
    widths_Xi: Dims | None = None

    def __attrs_post_init__(self) -> None:
        self.in_dims = checked_dims("SharedEncoder.in_dims", self.in_dims)
        if not self.in_dims:
            raise BadInput("SharedEncoder.in_dims=() has no model dimension: it reads the mean over models.")
        count("SharedEncoder.d_in", self.d_in)
        count("SharedEncoder.n_latents", self.n_latents)
        check_widths("widths_Xi", self.in_dims, self.d_in, self.widths_Xi)
        self.W_enc_PDiL = nn.Parameter(torch.zeros(*self.in_dims[1:], self.d_in, self.n_latents))
        self.b_enc_L = _make_bias(self.n_latents, self.bias)

    def weights(self) -> Float[Tensor, "M *P Di L"]:
        """The weights as a dense tensor: those of the mean, divided among the models."""
        return repeat(self.W_enc_PDiL / self.in_dims[0], "... -> M ...", M=self.in_dims[0])

    @torch.no_grad()
    def assign_(self, W_enc_XiDiL: Float[Tensor, "M *P Di L"]) -> None:
        real_XiDi = real_coordinates(self.in_dims, self.d_in, self.widths_Xi).to(W_enc_XiDiL.device)
        self.W_enc_PDiL.copy_((W_enc_XiDiL * real_XiDi[..., None]).sum(0))


@module
class TiedEncoder(AffineEncoder):
    """The decoder's directions, transposed: `z = x W_dec^T + b_enc`, as in the first sparse autoencoders.

    Hand the coder this very decoder too. Sites that a latent does not write are not read either.

    Args:
        decoder: the coder's own decoder, which reads and writes equal spaces.
        bias: whether there is a `b_enc_L`.
    """

    decoder: Decoder
    bias: bool = True

    def __attrs_post_init__(self) -> None:
        instance("TiedEncoder.decoder", self.decoder, Decoder, "the coder's own decoder, such as DenseDecoder(…)")
        self.b_enc_L = _make_bias(self.n_latents, self.bias)

    @property
    def in_dims(self) -> Dims:  # type: ignore[override]
        return self.decoder.out_dims

    @property
    def d_in(self) -> int:  # type: ignore[override]
        return self.decoder.d_out

    @property
    def n_latents(self) -> int:  # type: ignore[override]
        return self.decoder.n_latents

    @property
    def widths_Xi(self) -> Dims | None:  # type: ignore[override]
        return self.decoder.widths_Xo

    def reads_LXi(self) -> Bool[Tensor, "L *Xi"]:
        return self.decoder.writes_LXo()

    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        """The decoder's directions with the latents last."""
        return rearrange(self.decoder.dense(), "L ... -> ... L")

    @torch.no_grad()
    def assign_(self, W_enc_XiDiL: Float[Tensor, "*Xi Di L"]) -> None:
        if not torch.allclose(W_enc_XiDiL, self.weights(), rtol=1e-4, atol=1e-6):
            raise BadInput(
                "TiedEncoder has the decoder's weights, and this start sets others: use AnthropicTranspose or "
                "SameAcrossSites."
            )


@module
class MaskedEncoder(Encoder):
    """Each group of latents reads its own sites; weights of other sites do not exist.

    `W_enc_XgDiLg[g]` has the `Xg` sites of group g and its `Lg` latents. With a group for each site it is the encoder
    of the compound CLT (Circuit Tracing, 2025, "Architecture") and of causal crosscoders (Gemma Scope 2, section 2.6).

    Args:
        in_dims: input crosscoding dimensions `Xi`.
        d_in: width of the activations read (`Di`), the widest if they differ.
        mask: the groups of latents, and the sites that each reads.
        bias: whether there is a `b_enc_L`.
        widths_Xi: real width of each site in row-major order where they differ; the rest is padding.
    """

    in_dims: Dims
    d_in: int
    mask: SiteMask
    bias: bool = True
    widths_Xi: Dims | None = None
    is_affine = True

    def __attrs_post_init__(self) -> None:
        self.in_dims = checked_dims("MaskedEncoder.in_dims", self.in_dims)
        count("MaskedEncoder.d_in", self.d_in)
        instance("MaskedEncoder.mask", self.mask, SiteMask, "a SiteMask")
        self.mask.check(self.in_dims)
        check_widths("widths_Xi", self.in_dims, self.d_in, self.widths_Xi)
        self.W_enc_XgDiLg = nn.ParameterList(
            nn.Parameter(torch.zeros(len(sites), self.d_in, n)) for n, sites in self.mask.groups
        )
        self.b_enc_L = _make_bias(self.n_latents, self.bias)

    @property
    def n_latents(self) -> int:  # type: ignore[override]
        return self.mask.n_latents

    @property
    def W_enc_XiDiL(self) -> Float[Tensor, "*Xi Di L"]:
        """The weights as a dense tensor, differentiable; to be read, not written (`assign_` writes)."""
        return self.weights()

    def reads_LXi(self) -> Bool[Tensor, "L *Xi"]:
        return self.mask.allowed_LX(self.in_dims).to(self.W_enc_XgDiLg[0].device)

    def _groups(self) -> Iterator[tuple[slice, Sequence[int], Tensor]]:
        """Each group's latents, sites and weights."""
        for latents, (_, sites), W_XgDiLg in zip(self.mask.latents(), self.mask.groups, self.W_enc_XgDiLg):
            yield latents, sites, W_XgDiLg

    def _read(self, x_BXiDi: Tensor, sites: Sequence[int]) -> Tensor:
        """Activations of some sites side by side, `(B, Xg Di)`."""
        x_BI: Tensor = at_sites(x_BXiDi.reshape(len(x_BXiDi), -1, self.d_in), sites).flatten(1)
        return x_BI

    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        """The weights as a dense tensor, 0 where nothing is read."""
        dense_XDiL: Tensor = self.W_enc_XgDiLg[0].new_zeros(n_sites(self.in_dims), self.d_in, self.n_latents)
        for latents, sites, W_XgDiLg in self._groups():
            dense_XDiL[list(sites), :, latents] = W_XgDiLg
        return dense_XDiL.reshape(*self.in_dims, self.d_in, self.n_latents)

    def linear(self, x_BXiDi: Float[Tensor, "B *Xi Di"], latents_l: Which = slice(None)) -> Float[Tensor, "B l"]:
        return self._side_by_side(x_BXiDi, None)[:, latents_l]

    def forward(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B L"]:
        return self._side_by_side(x_BXiDi, self.b_enc_L)

    def _side_by_side(self, x_BXiDi: Tensor, b_enc_L: Tensor | None) -> Tensor:
        """Every group's pre-activations; where no graph is wanted each is written straight to its place."""
        graph = torch.is_grad_enabled()
        dtype = torch.result_type(x_BXiDi, self.W_enc_XgDiLg[0])
        z_BL = x_BXiDi.new_empty(0 if graph else len(x_BXiDi), self.n_latents, dtype=dtype)
        groups = []
        for latents, sites, W_XgDiLg in self._groups():
            x_BI, W_ILg = self._read(x_BXiDi, sites), W_XgDiLg.flatten(0, 1)
            out = None if graph else z_BL[:, latents]
            if b_enc_L is None:
                groups.append(torch.mm(x_BI, W_ILg, out=out))
            else:
                groups.append(torch.addmm(b_enc_L[latents], x_BI, W_ILg, out=out))
        return torch.cat(groups, dim=-1) if graph else z_BL

    def attach(
        self, values_N: Float[Tensor, " N"], x_BXiDi: Float[Tensor, "B *Xi Di"], pattern: Pattern
    ) -> Float[Tensor, " N"]:
        attached_N = torch.empty_like(values_N)
        for latents, sites, W_XgDiLg in self._groups():
            own_n, own = pattern.columns(latents)
            b_Lg = None if self.b_enc_L is None else self.b_enc_L[latents]
            x_BI = self._read(x_BXiDi, sites)
            own_values_n = attach_linear(values_N.index_select(0, own_n), x_BI, W_XgDiLg.flatten(0, 1), b_Lg, own)
            attached_N = attached_N.index_copy(0, own_n, own_values_n)
        return attached_N

    @torch.no_grad()
    def assign_(self, W_enc_XiDiL: Float[Tensor, "*Xi Di L"]) -> None:
        real_XiDi = real_coordinates(self.in_dims, self.d_in, self.widths_Xi).to(W_enc_XiDiL.device)
        W_XDiL = (W_enc_XiDiL * real_XiDi[..., None]).reshape(-1, self.d_in, self.n_latents)
        for latents, sites, W_XgDiLg in self._groups():
            W_XgDiLg.copy_(W_XDiL[list(sites), :, latents])

    @torch.no_grad()
    def folded(
        self, scale_Xi: Float[Tensor, "*Xi"], shift_XiDi: Float[Tensor, "*Xi Di"], a_L: Float[Tensor, " L"]
    ) -> "MaskedEncoder":
        raw = evolve(self, bias=True).to(self.W_enc_XgDiLg[0])
        raw.assign_(self.weights() * scale_Xi[..., None, None] * a_L)
        bias_L = 0 if self.b_enc_L is None else self.b_enc_L * a_L
        assert raw.b_enc_L is not None
        raw.b_enc_L.copy_(bias_L - raw.linear(shift_XiDi[None])[0])
        return raw
