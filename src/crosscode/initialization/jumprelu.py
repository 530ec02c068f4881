"""The January 2025 update's start, whose biases make every latent fire equally often."""

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.activations import JumpReLU
from crosscode.batch import Batch
from crosscode.checks import count, instance
from crosscode.errors import BadInput
from crosscode.initialization.data import scaled_inputs
from crosscode.initialization.weights import require_transposable, transposed, uniform, zero_biases
from crosscode.models import SparseCoder
from crosscode.module import Field
from crosscode.order import Effect
from crosscode.shapes import real_coordinates

MOST_QUANTILE_ELEMENTS = 2**24  # torch.quantile refuses more


@torch.no_grad()
def quantile_L(coder: SparseCoder, data: Iterable[Batch], firing_rate: float, n_tokens: int) -> Float[Tensor, " L"]:
    """What each latent's bias-free pre-activation exceeds on a fraction `firing_rate` of tokens.

    Streams by chunks of latents, so that tokens x latents is never held at once.
    """
    x_NXiDi = scaled_inputs(coder, data, n_tokens)
    chunk = max(1, MOST_QUANTILE_ELEMENTS // len(x_NXiDi) // 4)
    quantiles = []
    for start in range(0, coder.n_latents, chunk):
        u_Nl = coder.encoder.linear(x_NXiDi, slice(start, start + chunk))
        u_Nl = u_Nl.float() if u_Nl.element_size() < 4 else u_Nl
        quantiles.append(torch.quantile(u_Nl, 1 - firing_rate, dim=0))
    return torch.cat(quantiles)


def default_firing_rate(n_latents: int) -> float:
    """`10000 / L` as in the January 2025 update, at most 0.3 (below ten thousand latents it would exceed 1)."""
    return min(10_000 / n_latents, 0.3)


def _check_rate(instance: object, field: Field, value: float | None) -> None:
    if value is not None and not 0 < value < 1:
        raise BadInput(f"{type(instance).__name__}.firing_rate={value} must lie between 0 and 1.")


@attrs.frozen
class _EqualFiring:
    """The January update's weights, and what every latent's pre-activation exceeds on a fraction of tokens."""

    decoder_norm: ClassVar[float | None] = None  # of vectors whose lengths the encoder goes by
    jumprelu: JumpReLU
    firing_rate: float | None = attrs.field(default=None, validator=_check_rate)
    n_tokens: int = 20_000
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        instance(f"{type(self).__name__}.jumprelu", self.jumprelu, JumpReLU, "the coder's own JumpReLU")
        count(f"{type(self).__name__}.n_tokens", self.n_tokens)

    def working_bytes(self, coder: SparseCoder) -> int:
        """What quantiles over tokens take: the inputs, batch by batch and together, and a chunk of latents, sorted."""
        _, n = self._rate_and_tokens(coder)
        chunk = min(n * coder.n_latents, MOST_QUANTILE_ELEMENTS // 4)
        return 8 * n * coder.shift_in_XiDi.numel() + 32 * chunk  # torch.quantile copies, sorts, keeps 64-bit places

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that this is no start of.

        Another coder's thresholds would set this one's biases wrongly, and nothing would tell.
        """
        who = type(self).__name__
        require_transposable(coder, who)
        if not any(part is self.jumprelu for part in coder.modules()):
            raise BadInput(f"{who}.jumprelu is no part of the coder: hand over the very JumpReLU it was built with.")
        self.jumprelu.check(coder.n_latents)

    def _rate_and_tokens(self, coder: SparseCoder) -> tuple[float, int]:
        rate = self.firing_rate or default_firing_rate(coder.n_latents)
        return rate, max(self.n_tokens, round(10 / rate))

    def _draw_and_measure(self, coder: SparseCoder, data: Iterable[Batch]) -> Float[Tensor, " L"]:
        draw_jan_update_weights(coder, self.seed)
        return quantile_L(coder, data, *self._rate_and_tokens(coder))


@attrs.frozen
class JanUpdate(_EqualFiring):
    """`W_dec ~ U(+-1/sqrt(n))`, `W_enc = (n/m) W_dec^T`, `b_dec = 0`, `b_enc` so that each fires on a fraction r.

    `n` is the total input width, `m` the number of latents (January 2025 update; 1/sqrt(n) is its own erratum's value).
    Padding of narrower sites does not count for `n`. Run it after `NormalizeActivations`.

    Args:
        jumprelu: the coder's own activation; its thresholds are what the biases are set against.
        firing_rate: r, the fraction of tokens each latent fires on at the start; `min(10000 / m, 0.3)` if not given.
        n_tokens: how many tokens calibrate the biases; at least `10 / r`.
        seed: of the generator that draws the decoder.
    """

    effect: ClassVar[Effect] = Effect(
        reads={"scales", "encoder", "thresholds"},
        sets={"encoder", "decoder", "encoder bias"},
        clears={"decoder bias", "skip"},
    )

    def check_coder(self, coder: SparseCoder) -> None:
        _EqualFiring.check_coder(self, coder)
        if coder.encoder.b_enc_L is None:
            raise BadInput("JanUpdate needs an encoder with a bias; use JumpReLUWithoutBias.")

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        assert coder.encoder.b_enc_L is not None
        q_L = self._draw_and_measure(coder, data)
        coder.encoder.b_enc_L.copy_(self.jumprelu.threshold_L.detach() - q_L)


@attrs.frozen
class JumpReLUWithoutBias(_EqualFiring):
    """As `JanUpdate` for an encoder without a bias: the threshold itself is set, to `max(quantile, 1e-3)`.

    Args:
        jumprelu: the coder's own activation, whose thresholds are set.
        firing_rate: fraction of tokens each latent fires on at the start; `min(10000 / m, 0.3)` if not given.
        n_tokens: how many tokens calibrate the thresholds.
        seed: of the generator that draws the decoder.
    """

    effect: ClassVar[Effect] = Effect(
        reads={"scales", "encoder"}, sets={"encoder", "decoder", "thresholds"}, clears={"decoder bias", "skip"}
    )

    def check_coder(self, coder: SparseCoder) -> None:
        _EqualFiring.check_coder(self, coder)
        if coder.encoder.b_enc_L is not None:
            raise BadInput("JumpReLUWithoutBias needs an encoder with bias=False.")

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        self.jumprelu.set_threshold_(self._draw_and_measure(coder, data).clamp_min(1e-3))


@torch.no_grad()
def draw_jan_update_weights(coder: SparseCoder, seed: int) -> None:
    """The January update's weights; what is tied between models is drawn once."""
    generator = torch.Generator().manual_seed(seed)
    encoder, decoder = coder.encoder, coder.decoder
    n_inputs = int(real_coordinates(encoder.in_dims, encoder.d_in, encoder.widths_Xi).sum())
    W_dec_LXoDo = uniform((coder.n_latents, *decoder.out_dims, decoder.d_out), n_inputs**-0.5, generator)
    shared_L = decoder.shared_L().cpu()
    W_dec_LXoDo[shared_L] = W_dec_LXoDo[shared_L, :1]  # else tying would average the draws
    decoder.assign_(W_dec_LXoDo.to(coder.scale_out_Xo))
    coder.encoder.assign_(transposed(coder.decoder.dense()) * (n_inputs / coder.n_latents))
    zero_biases(coder)
