"""Penalties on how much, or how many, latents fire."""

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.activations import JumpReLU
from crosscode.checks import positive
from crosscode.latents import Latents
from crosscode.models import DecoderNorm, Trace, combined_norm_L

ALL = slice(None)


def weighed(trace: Trace, latents: slice, norm: DecoderNorm) -> tuple[Tensor, Tensor]:
    """The stored latent values of a range beside each one's decoder-norm weight."""
    a_L = combined_norm_L(trace.decoder_norms_LXo, norm)
    codes = trace.latents
    if latents != ALL:
        codes, a_L = codes.slice(latents), a_L[latents]
    return codes.entries(a_L)


@attrs.frozen
class L1OfNorms:
    """`sum_L f_L a_L` (Sparse Crosscoders, Oct 2024: `a` is the sum over sites of decoder norms).

    Args:
        norm: how decoder norms over sites combine.
        latents: which latents pay.
    """

    norm: DecoderNorm = "l1_of_l2"
    latents: slice = ALL

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        a_L = combined_norm_L(trace.decoder_norms_LXo, self.norm)
        return trace.latents.sum_L()[self.latents] @ a_L[self.latents] / len(trace)


@attrs.frozen
class TanhSparsity:
    """`sum_L tanh(c f_L a_L)` (January 2025 update; Circuit Tracing): saturates, so strong latents pay no more.

    Args:
        c: steepness; 4 in every known implementation of the January update.
        norm: how decoder norms over sites combine.
        latents: which latents pay.
    """

    c: float = 4.0
    norm: DecoderNorm = "l1_of_l2"
    latents: slice = ALL

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        f, a = weighed(trace, self.latents, self.norm)
        return torch.tanh(self.c * f * a).sum() / len(trace)


@attrs.frozen
class TanhFrequency:
    """`sum_L p_L (1 + p_L / s)` with `p_L = mean_B tanh(c f a)`: frequent latents pay more.

    A batch-level term: under gradient accumulation it is taken per micro-batch.

    Args:
        c: steepness of the tanh.
        s: frequency at which the price has doubled, 0.01 to 0.1.
        norm: how decoder norms over sites combine.
    """

    c: float = 4.0
    s: float = 0.1
    norm: DecoderNorm = "l1_of_l2"

    def __attrs_post_init__(self) -> None:
        positive("TanhFrequency.s", self.s)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        f, a = weighed(trace, ALL, self.norm)
        soft = torch.tanh(self.c * f * a)
        p_L = Latents(soft, trace.latents.pattern).sum_L() / len(trace)
        return (p_L * (1 + p_L / self.s)).sum()


def mean_l0(trace: Trace, jumprelu: JumpReLU) -> Float[Tensor, ""]:
    """The batch mean of `sum_L 1[z > theta]`, differentiable through the step's estimator."""
    latents = trace.latents
    pre = trace.pre_BL if latents.pre is None else latents.pre
    return jumprelu.step(pre, latents.pattern).sum() / len(trace)


@attrs.frozen
class ExpectedL0:
    """`sum_L 1[z_L > theta_L]` (Rajamanoharan et al. 2024; Gemma Scope 2, equation 4).

    Args:
        jumprelu: the coder's own activation.
    """

    jumprelu: JumpReLU

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        return mean_l0(trace, self.jumprelu)


@attrs.frozen
class L0QuadraticRelative:
    """`(L0 / target - 1)^2` of the batch-mean L0 (dictionary_learning), per micro-batch.

    Args:
        jumprelu: the coder's own activation.
        target: the L0 aimed at, in latents per token.
    """

    jumprelu: JumpReLU
    target: float

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        return (mean_l0(trace, self.jumprelu) / self.target - 1).square()


@attrs.frozen
class L0Quadratic:
    """`(2 / target) (L0 - target)^2` of the batch-mean L0 (Gemma Scope 2, equation 5), per micro-batch.

    Args:
        jumprelu: the coder's own activation.
        target: the L0 aimed at, in latents per token.
    """

    jumprelu: JumpReLU
    target: float

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        return 2 / self.target * (mean_l0(trace, self.jumprelu) - self.target).square()
