"""Penalties on how much, or how many, latents fire."""

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.activations import Thresholded
from crosscode.checks import contiguous, instance, latents_of_coder, one_of, positive
from crosscode.errors import BadInput
from crosscode.kernels.pattern import Pattern
from crosscode.latents import Latents, total
from crosscode.models import DecoderNorm, SparseCoder, Trace, combined_norm_L
from crosscode.schedulers import Scheduler, as_scheduler

ALL = slice(None)


def weighed(trace: Trace, latents: slice, norm: DecoderNorm) -> tuple[Tensor, Tensor, Pattern | None]:
    """The stored latent values of a range, each one's decoder-norm weight, and the pattern of both."""
    a_L = combined_norm_L(trace.decoder_norms_LXo, norm)
    codes = trace.latents
    if latents != ALL:
        codes, a_L = codes.slice(latents), a_L[latents]
    return *codes.entries(a_L), codes.pattern


def thresholds_of_coder(who: str, jumprelu: Thresholded, coder: SparseCoder) -> None:
    """A threshold for each of the coder's latents, or a line that says how many there are."""
    n_thresholds = len(jumprelu.threshold_L)
    if n_thresholds != coder.n_latents:
        raise BadInput(
            f"{who}.jumprelu has {n_thresholds} thresholds for the coder's n_latents={coder.n_latents}: hand over the "
            "whole of the coder's activation."
        )


@attrs.frozen
class L1OfNorms:
    """`sum_L f_L a_L` (Sparse Crosscoders, Oct 2024: `a` is the sum over sites of decoder norms).

    Args:
        norm: how decoder norms over sites combine.
        latents: which latents pay.
    """

    norm: DecoderNorm = "l1_of_l2"
    latents: slice = ALL

    def __attrs_post_init__(self) -> None:
        one_of("L1OfNorms.norm", self.norm, DecoderNorm)
        contiguous("L1OfNorms.latents", self.latents)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has no such latents."""
        latents_of_coder("L1OfNorms.latents", self.latents, coder.n_latents)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        a_L = combined_norm_L(trace.decoder_norms_LXo, self.norm)
        return total(trace.latents.sum_L()[self.latents] * a_L[self.latents]) / len(trace)


@attrs.frozen
class LpOfNorms:
    """`sum_L (f_L a_L)^p` over latents that fire: nearer to their number the smaller `p` is.

    Args:
        p: the exponent, greater than 0: a number, or a function of the step for p-annealing (Karvonen et al.,
            "Measuring Progress in Dictionary Learning", 2024: from 1 down to 0.2 or less).
        keep_size: multiply by what makes the value that of `p = 1` on the same batch, without a graph. The penalty's
            weight then means the same over the whole run, as the paper's own rescaling of it sees to.
        norm: how decoder norms over sites combine.
        latents: which latents pay.
    """

    p: Scheduler = attrs.field(converter=as_scheduler)
    keep_size: bool = True
    norm: DecoderNorm = "l1_of_l2"
    latents: slice = ALL

    def __attrs_post_init__(self) -> None:
        positive("LpOfNorms.p", self.p(0))
        one_of("LpOfNorms.norm", self.norm, DecoderNorm)
        contiguous("LpOfNorms.latents", self.latents)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has no such latents."""
        latents_of_coder("LpOfNorms.latents", self.latents, coder.n_latents)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        p = self.p(trace.step)
        positive(f"LpOfNorms.p at step {trace.step}", p)
        f, a, _ = weighed(trace, self.latents, self.norm)
        paid = f * a
        fires = paid > 0  # elsewhere the slope of a root has no end
        powers = torch.where(fires, paid, 1.0).pow(p) * fires
        size = total(paid.detach()) / total(powers.detach()).clamp_min(1e-30) if self.keep_size else 1.0
        return size * total(powers) / len(trace)


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

    def __attrs_post_init__(self) -> None:
        positive("TanhSparsity.c", self.c)
        one_of("TanhSparsity.norm", self.norm, DecoderNorm)
        contiguous("TanhSparsity.latents", self.latents)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has no such latents."""
        latents_of_coder("TanhSparsity.latents", self.latents, coder.n_latents)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        f, a, _ = weighed(trace, self.latents, self.norm)
        return total(torch.tanh(self.c * f * a)) / len(trace)


@attrs.frozen
class TanhFrequency:
    """`sum_L p_L (1 + p_L / s)` with `p_L = mean_B tanh(c f a)`: frequent latents pay more.

    A batch-level term: under gradient accumulation it is taken per micro-batch.

    Args:
        c: steepness of the tanh.
        s: frequency at which the price has doubled, 0.01 to 0.1.
        norm: how decoder norms over sites combine.
        latents: which latents pay.
    """

    c: float = 4.0
    s: float = 0.1
    norm: DecoderNorm = "l1_of_l2"
    latents: slice = ALL

    def __attrs_post_init__(self) -> None:
        positive("TanhFrequency.c", self.c)
        positive("TanhFrequency.s", self.s)
        one_of("TanhFrequency.norm", self.norm, DecoderNorm)
        contiguous("TanhFrequency.latents", self.latents)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has no such latents."""
        latents_of_coder("TanhFrequency.latents", self.latents, coder.n_latents)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        f, a, pattern = weighed(trace, self.latents, self.norm)
        p_L = Latents(torch.tanh(self.c * f * a), pattern).sum_L() / len(trace)
        return (p_L * (1 + p_L / self.s)).sum()


def _steps(trace: Trace, jumprelu: Thresholded) -> Latents:
    """`1[z > theta]`, differentiable through the step's estimator, in the form that the codes have."""
    latents = trace.latents
    pre = trace.pre_BL if latents.pre is None else latents.pre
    return Latents(jumprelu.step(pre, latents.pattern), latents.pattern)


def mean_l0(trace: Trace, jumprelu: Thresholded) -> Float[Tensor, ""]:
    """The batch mean of `sum_L 1[z > theta]`, differentiable through the step's estimator."""
    return total(_steps(trace, jumprelu).values) / len(trace)


@attrs.frozen
class ExpectedL0:
    """`sum_L 1[z_L > theta_L]` (Rajamanoharan et al. 2024; Gemma Scope 2, equation 4).

    A count: decoder norms do not weigh it, so it takes no `norm`.

    Args:
        jumprelu: the coder's own activation: a `JumpReLU`, or a `PerSite` of them.
    """

    jumprelu: Thresholded

    def __attrs_post_init__(self) -> None:
        instance("ExpectedL0.jumprelu", self.jumprelu, Thresholded, "a JumpReLU, or a PerSite of them")

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has other thresholds."""
        thresholds_of_coder("ExpectedL0", self.jumprelu, coder)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        return mean_l0(trace, self.jumprelu)


@attrs.frozen
class FrequencyL0:
    """`sum_L p_L (1 + p_L / s)` with `p_L = mean_B 1[z_L > theta_L]`: frequent latents pay more.

    The quadratic-frequency penalty of Google DeepMind's interpretability team (Progress Update 2, March 2025): of
    latents far rarer than `s` it is the expected L0. A batch-level term, taken per micro-batch.

    Args:
        jumprelu: the coder's own activation: a `JumpReLU`, or a `PerSite` of them.
        s: the frequency, as a share of tokens, at which a latent's price has doubled.
    """

    jumprelu: Thresholded
    s: float = 0.1

    def __attrs_post_init__(self) -> None:
        instance("FrequencyL0.jumprelu", self.jumprelu, Thresholded, "a JumpReLU, or a PerSite of them")
        positive("FrequencyL0.s", self.s)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has other thresholds."""
        thresholds_of_coder("FrequencyL0", self.jumprelu, coder)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        p_L = _steps(trace, self.jumprelu).sum_L() / len(trace)
        return (p_L * (1 + p_L / self.s)).sum()


@attrs.frozen
class L0QuadraticRelative:
    """`(L0 / target - 1)^2` of the batch-mean L0 (dictionary_learning), per micro-batch.

    A count: decoder norms do not weigh it, so it takes no `norm`.

    Args:
        jumprelu: the coder's own activation: a `JumpReLU`, or a `PerSite` of them.
        target: the L0 aimed at, in latents per token.
    """

    jumprelu: Thresholded
    target: float

    def __attrs_post_init__(self) -> None:
        instance("L0QuadraticRelative.jumprelu", self.jumprelu, Thresholded, "a JumpReLU, or a PerSite of them")
        positive("L0QuadraticRelative.target", self.target)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has other thresholds."""
        thresholds_of_coder("L0QuadraticRelative", self.jumprelu, coder)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        return (mean_l0(trace, self.jumprelu) / self.target - 1).square()


@attrs.frozen
class L0Quadratic:
    """`(2 / target) (L0 - target)^2` of the batch-mean L0 (Gemma Scope 2, equation 5), per micro-batch.

    A count: decoder norms do not weigh it, so it takes no `norm`.

    Args:
        jumprelu: the coder's own activation: a `JumpReLU`, or a `PerSite` of them.
        target: the L0 aimed at, in latents per token.
    """

    jumprelu: Thresholded
    target: float

    def __attrs_post_init__(self) -> None:
        instance("L0Quadratic.jumprelu", self.jumprelu, Thresholded, "a JumpReLU, or a PerSite of them")
        positive("L0Quadratic.target", self.target)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has other thresholds."""
        thresholds_of_coder("L0Quadratic", self.jumprelu, coder)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        return 2 / self.target * (mean_l0(trace, self.jumprelu) - self.target).square()
