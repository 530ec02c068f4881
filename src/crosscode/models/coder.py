"""`SparseCoder`: encoder, activation, decoder and an optional skip."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscode.activations import Activation
from crosscode.batch import Batch
from crosscode.checks import instance
from crosscode.errors import BadInput
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.screening import screening_is_faster, top_k_of_product
from crosscode.latents import Latents
from crosscode.models.decoders import Decoder
from crosscode.models.encoders import Encoder
from crosscode.models.norms import combined_norm_L
from crosscode.models.skip import LinearSkip
from crosscode.module import evolve, module
from crosscode.one_definition import is_as_written
from crosscode.shapes import real_coordinates


def _expect(name: str, raw: Tensor, like: Tensor) -> None:
    """Refuse activations of another shape, even one that broadcasting would accept."""
    instance(name, raw, Tensor, "a tensor of activations")
    if raw.shape[1:] != like.shape:
        got, wanted = (", ".join(map(str, shape)) for shape in (raw.shape[1:], like.shape))
        raise BadInput(f"{name} has shape (B, {got}) but the coder expects (B, {wanted}).")


def _has(part: nn.Module, *names: str) -> None:
    """Refuse a part without one of its attributes."""
    for name in names:
        if not hasattr(part, name):
            which = f"{name} (None if there is none)" if name.startswith("b_") else name
            raise BadInput(f"{type(part).__name__} has no attribute {which}: a field, or set in __attrs_post_init__.")


@module
class SparseCoder(nn.Module):
    """The SAE, the crosscoder, the transcoder and the cross-layer transcoder: what differs is the parts.

    `z = encoder(x)`, `f = activation(z)`, `yhat = decoder(f) [+ skip(x)]`, all in scaled space:
    `x = (raw - shift_in) * scale_in`. `encode` and `forward` take and give raw activations, always.

    Args:
        encoder: scaled activations to pre-activations.
        activation: pre-activations to latents.
        decoder: latents to reconstructions.
        skip: an optional linear map from inputs to outputs.
    """

    encoder: Encoder
    activation: Activation
    decoder: Decoder
    skip: LinearSkip | None = None

    def __init_subclass__(cls) -> None:
        own = [name for name in vars(cls) if name in vars(SparseCoder) and not name.startswith("__")]
        if own:
            raise BadInput(
                f"{cls.__name__}.{own[0]}: training asks more than one method of SparseCoder, so none is overridden. "
                "Write an encoder, an activation or a decoder of your own."
            )
        super().__init_subclass__()

    def __attrs_post_init__(self) -> None:
        instance("SparseCoder.encoder", self.encoder, Encoder, "an Encoder, such as DenseEncoder(…)")
        instance("SparseCoder.activation", self.activation, Activation, "an Activation, such as ReLU()")
        instance("SparseCoder.decoder", self.decoder, Decoder, "a Decoder, such as DenseDecoder(…)")
        _has(self.encoder, "in_dims", "d_in", "n_latents", "b_enc_L")
        _has(self.decoder, "out_dims", "d_out", "n_latents", "b_dec_XoDo")
        if self.encoder.n_latents != self.decoder.n_latents:
            raise BadInput(
                f"encoder.n_latents={self.encoder.n_latents} must equal decoder.n_latents={self.decoder.n_latents}."
            )
        self.activation.check(self.n_latents)
        if self.skip is not None:
            ours = (self.encoder.in_dims, self.encoder.d_in, self.decoder.out_dims, self.decoder.d_out)
            its = (self.skip.in_dims, self.skip.d_in, self.skip.out_dims, self.skip.d_out)
            if ours != its:
                raise BadInput(f"skip maps {its[:2]} to {its[2:]}, but the coder maps {ours[:2]} to {ours[2:]}.")
        self.scale_in_Xi: Tensor
        self.scale_out_Xo: Tensor
        self.shift_in_XiDi: Tensor
        self.shift_out_XoDo: Tensor
        in_dims, out_dims = self.encoder.in_dims, self.decoder.out_dims
        self.register_buffer("scale_in_Xi", torch.ones(in_dims))
        self.register_buffer("scale_out_Xo", torch.ones(out_dims))
        self.register_buffer("shift_in_XiDi", torch.zeros(*in_dims, self.encoder.d_in))
        self.register_buffer("shift_out_XoDo", torch.zeros(*out_dims, self.decoder.d_out))
        self.padding_in_XiDi: Tensor | None
        self.padding_out_XoDo: Tensor | None
        for name, dims, d, widths in (
            ("padding_in_XiDi", in_dims, self.encoder.d_in, self.encoder.widths_Xi),
            ("padding_out_XoDo", out_dims, self.decoder.d_out, self.decoder.widths_Xo),
        ):
            padding_XD = None if widths is None else ~real_coordinates(dims, d, widths)
            self.register_buffer(name, padding_XD, persistent=False)

    @property
    def n_latents(self) -> int:
        """How many latents there are (`L`)."""
        return self.encoder.n_latents

    @property
    def device(self) -> torch.device:
        """Where the coder's parameters are."""
        return self.scale_in_Xi.device

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch whose shapes are not the coder's, naming the argument and both shapes."""
        _expect("inputs_BXiDi", batch.inputs_BXiDi, self.shift_in_XiDi)
        _expect("targets_BXoDo", batch.targets_BXoDo, self.shift_out_XoDo)

    def scale_inputs(self, raw_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B *Xi Di"]:
        """Raw inputs into scaled space, in the coder's precision; a narrower site's padding counts as 0."""
        scaled_BXiDi = ((raw_BXiDi - self.shift_in_XiDi) * self.scale_in_Xi[..., None]).to(self.scale_in_Xi.dtype)
        return scaled_BXiDi if self.padding_in_XiDi is None else scaled_BXiDi.masked_fill(self.padding_in_XiDi, 0.0)

    def scale_targets(self, raw_BXoDo: Float[Tensor, "B *Xo Do"]) -> Float[Tensor, "B *Xo Do"]:
        """Raw targets into scaled space, in the coder's precision; a narrower site's padding counts as 0."""
        scaled_BXoDo = ((raw_BXoDo - self.shift_out_XoDo) * self.scale_out_Xo[..., None]).to(self.scale_out_Xo.dtype)
        return scaled_BXoDo if self.padding_out_XoDo is None else scaled_BXoDo.masked_fill(self.padding_out_XoDo, 0.0)

    def unscale_outputs(self, recon_BXoDo: Float[Tensor, "B *Xo Do"]) -> Float[Tensor, "B *Xo Do"]:
        """Reconstructions back into raw space."""
        return recon_BXoDo / self.scale_out_Xo[..., None] + self.shift_out_XoDo

    @torch.no_grad()
    def score_norms_L(self) -> Float[Tensor, " L"] | None:
        """The decoder-norm weights that the activation ranks by; None if it ranks by activation alone."""
        norm = self.activation.score_norm
        return None if norm is None else combined_norm_L(self.decoder.norms_LXo(), norm)

    def activate(self, x_BXiDi: Float[Tensor, "B *Xi Di"], sparse: bool = False) -> Latents:
        """Latents of *scaled* inputs.

        Sparse codes are selected on pre-activations without a graph; the selected ones are then given sparse gradients.

        Args:
            x_BXiDi: scaled inputs.
            sparse: whether an activation whose codes travel in either form gives sparse ones.
        """
        form = self.activation.codes
        as_written = is_as_written(self.encoder) and is_as_written(self.activation)
        if form == "dense" or (form == "either" and not sparse) or not as_written:
            return self._checked(self.activation(self.encoder(x_BXiDi), self.score_norms_L()))
        with torch.no_grad():
            pattern, pre_N = self._select_screened(x_BXiDi) or self._select(x_BXiDi)
        return self.activation.latents_of(self.encoder.attach(pre_N, x_BXiDi, pattern), pattern)

    def _checked(self, latents: object) -> Latents:
        """What an activation gave, if it is latents of the coder's number."""
        who = type(self.activation).__name__
        instance(f"what {who}.forward returns", latents, Latents, "Latents, such as Latents.from_dense(latents_BL)")
        assert isinstance(latents, Latents)
        if latents.n_latents != self.n_latents:
            raise BadInput(f"{who}.forward returns {latents.n_latents} latents of a coder of {self.n_latents}.")
        return latents

    def _select(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> tuple[Pattern, Float[Tensor, " N"]]:
        z_BL = self.encoder(x_BXiDi)
        pattern = self.activation.select(z_BL, self.score_norms_L())
        return pattern, pattern.of(z_BL).to(x_BXiDi.dtype)

    def _select_screened(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> tuple[Pattern, Float[Tensor, " N"]] | None:
        """The same without computing every pre-activation, where that is possible and faster."""
        k = self.activation.kept_of_each_token
        product = None if k is None else self.encoder.as_product(x_BXiDi)
        if k is None or product is None:
            return None
        x_BI, W_IL, b_L = product
        return (
            top_k_of_product(x_BI, W_IL, b_L, k, self.score_norms_L()) if screening_is_faster(x_BI, W_IL, k) else None
        )

    def reconstruct(self, latents: Latents, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B *Xo Do"]:
        """Reconstructions in *scaled* space from latents and, with a skip, the scaled inputs."""
        recon_BXoDo: Tensor = self.decoder(latents)
        return recon_BXoDo if self.skip is None else recon_BXoDo + self.skip(x_BXiDi)

    def encode(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Latents:
        """Latents of raw activations."""
        _expect("x_BXiDi", x_BXiDi, self.shift_in_XiDi)
        return self.activate(self.scale_inputs(x_BXiDi))

    def decode(self, latents: Latents) -> Float[Tensor, "B *Xo Do"]:
        """Raw reconstructions from latents alone (a skip needs the inputs: see `forward`)."""
        return self.unscale_outputs(self.decoder(latents))

    def forward(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B *Xo Do"]:
        """Raw activations in, raw reconstructions out."""
        _expect("x_BXiDi", x_BXiDi, self.shift_in_XiDi)
        x_BXiDi = self.scale_inputs(x_BXiDi)
        return self.unscale_outputs(self.reconstruct(self.activate(x_BXiDi), x_BXiDi))

    @torch.no_grad()
    def canonical_factor_L(self) -> Float[Tensor, " L"]:
        """By what `folded` multiplies each latent: its decoder norm, so that a latent's size is what it writes.

        Latents with a zero decoder keep the factor 1; so do all whose activation is not rescalable.
        """
        norm = (self.activation.score_norm or "l1_of_l2") if self.activation.is_rescalable else "none"
        a_L = combined_norm_L(self.decoder.norms_LXo(), norm)
        return torch.where(a_L > 0, a_L, torch.ones_like(a_L))

    @torch.no_grad()
    def folded(self) -> "SparseCoder":
        """The same function with scales baked into the weights: an export for use on raw activations.

        First canonicalised (latents times their decoder norm, thresholds included), then folded; selections rank
        unweighted from then on, so decoder norms of raw space play no part. Latents change by `canonical_factor_L`.
        """
        a_L = self.canonical_factor_L()
        rescalable = self.activation.is_rescalable
        if self.activation.score_norm is not None and not rescalable:
            who = type(self.activation).__name__
            raise BadInput(f"{who} ranks by decoder norms, which folding changes: give it a `rescaled`.")
        score_norms_L = self.score_norms_L()
        # A latent without a decoder has no score to be ranked by, and must not get one from unweighted ranking.
        ranked_a_L = a_L if score_norms_L is None else a_L * (score_norms_L > 0)
        raw = SparseCoder(
            encoder=self.encoder.folded(self.scale_in_Xi, self.shift_in_XiDi, ranked_a_L),
            activation=self.activation.rescaled(a_L) if rescalable else copy.deepcopy(self.activation),
            decoder=self.decoder.folded(self.scale_out_Xo, self.shift_out_XoDo, a_L),
            skip=self.skip and self.skip.folded(self.scale_in_Xi, self.scale_out_Xo),
        )
        if raw.skip is not None:
            assert raw.decoder.b_dec_XoDo is not None
            raw.decoder.b_dec_XoDo.sub_(raw.skip(self.shift_in_XiDi[None])[0])
        return raw.to(self.scale_in_Xi).train(self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseCoder":
        twin = evolve(
            self,
            encoder=copy.deepcopy(self.encoder, memo),
            activation=copy.deepcopy(self.activation, memo),
            decoder=copy.deepcopy(self.decoder, memo),
            skip=copy.deepcopy(self.skip, memo),
        )
        twin.to(self.scale_in_Xi).load_state_dict(self.state_dict())
        return twin.train(self.training)
