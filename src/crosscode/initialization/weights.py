"""Random starts of encoders, decoders and skips."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import at_most, count, positive
from crosscode.errors import BadInput, warn
from crosscode.initialization.data import scaled_inputs, scaled_targets
from crosscode.models import SparseCoder
from crosscode.order import Effect
from crosscode.saving import load, spec_of
from crosscode.shapes import real_coordinates

RANDOM_START = Effect(sets={"encoder", "decoder"}, clears={"encoder bias", "decoder bias", "skip"})
MEAN_START = Effect(
    reads={"scales", "encoder", "skip"}, sets={"encoder", "decoder", "encoder bias", "decoder bias", "skip"}
)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _shape(coder: SparseCoder) -> tuple[int, ...]:
    return (coder.n_latents, *coder.decoder.out_dims, coder.decoder.d_out)


def uniform(shape: tuple[int, ...], limit: float, generator: torch.Generator) -> Tensor:
    """Uniform in `[-limit, limit]`."""
    return (2 * torch.rand(shape, generator=generator) - 1) * limit


def with_norm(W: Float[Tensor, "*any D"], norm: float) -> Float[Tensor, "*any D"]:
    """Vectors along the last axis rescaled to a norm; zero vectors stay zero."""
    norms: Tensor = torch.linalg.vector_norm(W, dim=-1, keepdim=True)
    return W * (norm / norms.clamp_min(1e-30))


def transposed(W_dec_LXD: Float[Tensor, "L *X D"]) -> Float[Tensor, "*X D L"]:
    """A decoder's directions as an encoder's."""
    return rearrange(W_dec_LXD, "L ... -> ... L").contiguous()


def require_autoencoder(coder: SparseCoder, who: str) -> None:
    """Transposing a decoder into an encoder only makes sense between equal spaces."""
    ours = (coder.encoder.in_dims, coder.encoder.d_in)
    its = (coder.decoder.out_dims, coder.decoder.d_out)
    if ours != its:
        raise BadInput(f"{who} transposes the decoder, so inputs {ours} must equal outputs {its}; use CLTUniform.")


def _touched(coder: SparseCoder) -> tuple[Bool[Tensor, "L *Xi"], Bool[Tensor, "L *Xo"]]:
    """The sites that each latent reads, and those that it writes."""
    return coder.encoder.reads_LXi().cpu(), coder.decoder.writes_LXo().cpu()


def require_transposable(coder: SparseCoder, who: str) -> None:
    """A decoder's transpose reads what is written: a latent that writes other sites than it reads would never fire."""
    require_autoencoder(coder, who)
    reads_LX, writes_LX = (each.reshape(coder.n_latents, -1) for each in _touched(coder))
    silent_L = ~(reads_LX & writes_LX).any(-1)
    if silent_L.any():
        first = int(silent_L.nonzero()[0, 0])
        read, written = (each_LX[first].nonzero()[:, 0].tolist() for each_LX in (reads_LX, writes_LX))
        raise BadInput(
            f"{who}: {int(silent_L.sum())} of {coder.n_latents} latents write none of the sites that they read (latent "
            f"{first} reads {read} and writes {written}), so that a transposed encoder is 0 there: use CLTUniform."
        )


@torch.no_grad()
def zero_biases(coder: SparseCoder) -> None:
    """Both biases and the skip to zero."""
    for parameter in (coder.encoder.b_enc_L, coder.decoder.b_dec_XoDo):
        if parameter is not None:
            parameter.zero_()
    if coder.skip is not None:
        coder.skip.W_skip_XiDiXoDo.zero_()


@attrs.frozen
class AnthropicTranspose:
    """Random decoder directions of a given norm at every site; the encoder is their transpose; biases 0.

    Args:
        norm: L2 norm of a latent's decoder vector at each site: 0.08 to 0.1 for penalised coders (Anthropic's
            April 2024 update and ports), 1.0 for TopK-style ones, whose ranking starves on small norms.
        seed: of the generator that draws the directions.
    """

    effect: ClassVar[Effect] = RANDOM_START
    norm: float = 0.1
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        positive("AnthropicTranspose.norm", self.norm)

    @property
    def decoder_norm(self) -> float:
        """The length of each decoder vector at each site."""
        return self.norm

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder whose decoder cannot be transposed."""
        require_transposable(coder, "AnthropicTranspose")

    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        _tie_and_transpose(coder, torch.randn(_shape(coder), generator=_generator(self.seed)), self.norm)


@attrs.frozen
class SameAcrossSites:
    """As `AnthropicTranspose`, with one direction per latent repeated over all sites (Minder et al. 2025, code).

    Args:
        norm: L2 norm of a latent's decoder vector at each site.
        seed: of the generator that draws the directions.
    """

    effect: ClassVar[Effect] = RANDOM_START
    norm: float = 1.0
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        positive("SameAcrossSites.norm", self.norm)

    @property
    def decoder_norm(self) -> float:
        """The length of each decoder vector at each site."""
        return self.norm

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder whose decoder cannot be transposed."""
        require_transposable(coder, "SameAcrossSites")

    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        L, *Xo, Do = _shape(coder)
        W_LD = torch.randn(L, Do, generator=_generator(self.seed))
        W_LXoDo = W_LD.reshape(L, *[1] * len(Xo), Do).expand(_shape(coder))
        _tie_and_transpose(coder, W_LXoDo, self.norm)


@torch.no_grad()
def _tie_and_transpose(coder: SparseCoder, W_dec_LXoDo: Tensor, norm: float) -> None:
    coder.decoder.assign_(W_dec_LXoDo.to(coder.scale_out_Xo))
    coder.decoder.assign_(with_norm(coder.decoder.dense(), norm))  # tying averages, which shortens
    coder.encoder.assign_(transposed(coder.decoder.dense()))
    zero_biases(coder)


@attrs.frozen
class IdenticalLatents:
    """The first `n_shared` latents start equal in all models, encoder and decoder, and are free to part.

    Run it after a random start and before any calibration.

    Args:
        n_shared: how many latents start identical.
    """

    effect: ClassVar[Effect] = Effect(amends={"encoder", "decoder"})
    n_shared: int

    def __attrs_post_init__(self) -> None:
        count("IdenticalLatents.n_shared", self.n_shared, least=0)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder whose latents cannot be equal in all models."""
        at_most("IdenticalLatents.n_shared", self.n_shared, coder.n_latents, "n_latents")
        require_autoencoder(coder, "IdenticalLatents")
        decoder = coder.decoder
        if not decoder.out_dims:
            raise BadInput("IdenticalLatents needs models as the first crosscoding dimension, but the coder has none.")
        real_MPD = real_coordinates(decoder.out_dims, decoder.d_out, decoder.widths_Xo)
        if self.n_shared and not (real_MPD == real_MPD[:1]).all():
            raise BadInput(f"IdenticalLatents: widths_Xo={decoder.widths_Xo} differ between models.")
        touched = [each[: self.n_shared] for each in _touched(coder)]
        if any((each_LMP != each_LMP[:, :1]).any() for each_LMP in touched):
            raise BadInput(
                f"IdenticalLatents: the mask keeps some of the first {self.n_shared} latents from a model: put them "
                "behind those that are to start identical."
            )

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        shared, M = slice(0, self.n_shared), coder.decoder.out_dims[0]
        W_dec_LMPD, W_enc_MPDL = coder.decoder.dense().clone(), coder.encoder.weights().clone()
        W_dec_LMPD[shared] = repeat(W_dec_LMPD[shared, 0], "L ... -> L M ...", M=M)
        W_enc_MPDL[..., shared] = repeat(W_enc_MPDL[0][..., shared], "... L -> M ... L", M=M)
        coder.decoder.assign_(W_dec_LMPD)
        coder.encoder.assign_(W_enc_MPDL)


@attrs.frozen
class CLTUniform:
    """`W_enc ~ U(+-1/sqrt(Lp))`, `W_dec ~ U(+-1/sqrt(P D))`, biases 0: how every public CLT trainer starts.

    Args:
        n_latents_per_site: `Lp` of a compound CLT; all latents if not given.
        seed: of the generator.
    """

    effect: ClassVar[Effect] = RANDOM_START
    n_latents_per_site: int | None = None
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if self.n_latents_per_site is not None:
            count("CLTUniform.n_latents_per_site", self.n_latents_per_site)

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        generator = _generator(self.seed)
        decoder, L = coder.decoder, coder.n_latents
        n_outputs = int(real_coordinates(decoder.out_dims, decoder.d_out, decoder.widths_Xo).sum())
        enc_shape = (*coder.encoder.in_dims, coder.encoder.d_in, L)
        W_enc = uniform(enc_shape, (self.n_latents_per_site or L) ** -0.5, generator)
        W_dec = uniform(_shape(coder), n_outputs**-0.5, generator)
        coder.encoder.assign_(W_enc.to(coder.scale_in_Xi))
        coder.decoder.assign_(W_dec.to(coder.scale_out_Xo))
        zero_biases(coder)


@attrs.frozen
class ZeroDecoderSkip:
    """A transcoder that starts by predicting the mean: `W_dec = 0`, `W_skip = 0`, `b_dec = mean y` (sparsify).

    Encoder directions are random with a given norm, `b_enc = -mean(x) W_enc`. A zero decoder makes every weighted score
    zero, so the coder's activation must rank unweighted.

    Args:
        norm: L2 norm of each latent's encoder direction, over all sites read.
        n_tokens: how many tokens the means are measured on.
        seed: of the generator.
    """

    effect: ClassVar[Effect] = MEAN_START
    decoder_norm: ClassVar[float] = 0.0
    norm: float = 1.0
    n_tokens: int = 20_000
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        positive("ZeroDecoderSkip.norm", self.norm)
        count("ZeroDecoderSkip.n_tokens", self.n_tokens)

    def working_bytes(self, coder: SparseCoder) -> int:
        """What the means are taken of: inputs or targets, batch by batch and together."""
        return 8 * self.n_tokens * max(coder.shift_in_XiDi.numel(), coder.shift_out_XoDo.numel())

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that ranks by the norms of its decoder."""
        if coder.activation.score_norm is not None:
            raise BadInput("a zero decoder gives every weighted score 0: use an activation with weighted=False.")

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        _random_encoder(coder, self.norm, _generator(self.seed))
        coder.decoder.assign_(torch.zeros_like(coder.decoder.dense()))
        zero_biases(coder)
        _start_at_means(coder, data, self.n_tokens)


@attrs.frozen
class OrthogonalSkip:
    """As `ZeroDecoderSkip`, but the skip starts as a random orthogonal map between each pair of sites (speculative).

    Args:
        gain: factor on the orthogonal map.
        norm: L2 norm of each latent's encoder direction.
        n_tokens: how many tokens the means are measured on.
        seed: of the generator.
    """

    effect: ClassVar[Effect] = MEAN_START
    decoder_norm: ClassVar[float] = 0.0
    gain: float = 1.0
    norm: float = 1.0
    n_tokens: int = 20_000
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        positive("OrthogonalSkip.gain", self.gain)
        positive("OrthogonalSkip.norm", self.norm)
        count("OrthogonalSkip.n_tokens", self.n_tokens)

    def working_bytes(self, coder: SparseCoder) -> int:
        """What the means are taken of: inputs or targets, batch by batch and together."""
        return 8 * self.n_tokens * max(coder.shift_in_XiDi.numel(), coder.shift_out_XoDo.numel())

    @property
    def _without_skip(self) -> ZeroDecoderSkip:
        return ZeroDecoderSkip(self.norm, self.n_tokens, self.seed)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder without a skip, or one that ranks by the norms of its decoder."""
        if coder.skip is None:
            raise BadInput("OrthogonalSkip needs a coder with a skip.")
        self._without_skip.check_coder(coder)

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        assert coder.skip is not None
        self._without_skip(coder, data)
        generator = _generator(self.seed + 1)
        n_in, n_out = torch.Size(coder.encoder.in_dims).numel(), torch.Size(coder.decoder.out_dims).numel()
        W_IDiODo = torch.empty(n_in, coder.encoder.d_in, n_out, coder.decoder.d_out)
        for i in range(n_in):
            for o in range(n_out):
                torch.nn.init.orthogonal_(W_IDiODo[i, :, o], self.gain, generator=generator)
        encoder, decoder = coder.encoder, coder.decoder
        W_IDiODo *= real_coordinates(decoder.out_dims, decoder.d_out, decoder.widths_Xo).reshape(n_out, -1)
        W_IDiODo *= real_coordinates(encoder.in_dims, encoder.d_in, encoder.widths_Xi).reshape(n_in, -1, 1, 1)
        coder.skip.assign_(W_IDiODo.reshape(coder.skip.W_skip_XiDiXoDo.shape).to(coder.scale_in_Xi))
        _start_at_means(coder, data, self.n_tokens)


@torch.no_grad()
def _random_encoder(coder: SparseCoder, norm: float, generator: torch.Generator) -> None:
    W_LXiDi = torch.randn(coder.n_latents, *coder.encoder.in_dims, coder.encoder.d_in, generator=generator)
    coder.encoder.assign_(transposed(W_LXiDi.to(coder.scale_in_Xi)))
    W_LI = rearrange(coder.encoder.weights(), "... L -> L (...)")
    coder.encoder.assign_(with_norm(W_LI, norm).t().reshape(*coder.encoder.in_dims, -1, coder.n_latents))


@torch.no_grad()
def _start_at_means(coder: SparseCoder, data: Iterable[Batch], n_tokens: int) -> None:
    mean_x = scaled_inputs(coder, data, n_tokens).mean(0, keepdim=True)
    mean_y = scaled_targets(coder, data, n_tokens).mean(0)
    if coder.encoder.b_enc_L is not None:
        coder.encoder.b_enc_L.copy_(-coder.encoder.linear(mean_x)[0])
    if coder.decoder.b_dec_XoDo is not None:
        skipped = 0 if coder.skip is None else coder.skip(mean_x)[0]
        coder.decoder.b_dec_XoDo.copy_(mean_y - skipped)


@attrs.frozen
class StartFrom:
    """The weights, thresholds and scales of a saved coder: to train it on, under another loss say.

    Whatever comes before it in the list would be undone.

    Args:
        folder: where the coder was saved: its `coder/`, or a checkpoint.
        classes: the user's own classes that it is made of.
    """

    effect: ClassVar[Effect] = Effect(
        sets={"scales", "encoder", "decoder", "encoder bias", "decoder bias", "skip", "thresholds"}
    )
    folder: Path = attrs.field(converter=Path)
    classes: Sequence[type] = ()

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that does not have the sizes of the saved one, or if there is none."""
        mine, saved = coder.state_dict(), self._saved().state_dict()
        for name in sorted(mine.keys() | saved.keys()):
            shapes = [tuple(each[name].shape) if name in each else "missing" for each in (saved, mine)]
            if shapes[0] != shapes[1]:
                raise BadInput(
                    f"start_from: {name} of the coder in {str(self.folder)!r} is {shapes[0]}, and {shapes[1]} of this "
                    "one: it needs the same parts and sizes."
                )

    @property
    def decoder_norm(self) -> float | None:
        """The length of the saved decoder vectors at each site; None if they differ."""
        norms_LXo = self._saved().decoder.norms_LXo()
        return 1.0 if torch.allclose(norms_LXo, torch.ones_like(norms_LXo), atol=1e-5) else None

    def _saved(self) -> SparseCoder:
        return load(self.folder, classes=self.classes)

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        saved = self._saved()
        if differing := _differing(spec_of(saved), spec_of(coder)):
            warn(
                f"start_from: {', '.join(differing)} of the coder in {str(self.folder)!r} is not what this one has: "
                "its weights are taken as they are."
            )
        coder.load_state_dict(saved.state_dict())


def _differing(one: Any, other: Any, path: str = "") -> list[str]:
    """The fields in which two specs differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = (one | other).keys()
        fields = [(name, path if name == "fields" else f"{path}.{name}".lstrip(".")) for name in names]
        return [found for name, at in fields for found in _differing(one.get(name), other.get(name), at)]
    return [] if one == other else [path]
