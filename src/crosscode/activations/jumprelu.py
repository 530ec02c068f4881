"""JumpReLU and the Heaviside step, with straight-through gradients for the threshold."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscode.activations.base import Activation
from crosscode.checks import count, one_of, positive
from crosscode.errors import BadInput
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import above, entries_where
from crosscode.kernels.sparse import gather
from crosscode.latents import Latents
from crosscode.module import evolve, module

Parametrisation = Literal["log", "raw"]


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel K((z - theta) / eps): 1 strictly within half a bandwidth of the threshold."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


class _JumpReLU(torch.autograd.Function):
    """Of a matrix with a threshold per column, or of entries with a threshold each."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        (g,) = grads
        through_window = g * _window(pre, threshold, ctx.bandwidth) * (threshold / ctx.bandwidth)
        g_pre = g * (pre > threshold)
        if ctx.ste_to_input:
            g_pre = g_pre + through_window
        return g_pre, -through_window.sum_to_size(threshold.shape), None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        (g,) = grads
        through_window = g * _window(pre, threshold, ctx.bandwidth) / ctx.bandwidth
        return through_window if ctx.ste_to_input else None, -through_window.sum_to_size(threshold.shape), None, None


@module
class JumpReLU(Activation):
    """`f = z * 1[z > theta]` with a learned threshold per latent (Rajamanoharan et al. 2024; January 2025 update).

    Within half a bandwidth of the threshold the backward uses the rectangle estimator
    `df/dtheta = -(theta / bandwidth)`; with `ste_to_input` also `df/dz += theta / bandwidth`, which is what the
    January update means by letting the estimator reach all model parameters. The chain factor of the log
    parametrisation is exact. Thresholds stay at least float32 whatever the module's dtype.

    Args:
        n_latents: how many latents (`L`).
        threshold: initial threshold, in units of the pre-activation. 1.105 is e^0.1 (January update as ported).
        bandwidth: width of the estimator's window (`eps`): 2.0 with activations scaled to mean norm sqrt(D).
        ste_to_input: whether the estimator also reaches the pre-activation (January update: yes; GDM: no).
        parametrisation: what is learned: the threshold's logarithm, or the raw threshold, clamped at 0 when read.
    """

    n_latents: int
    threshold: float = 1.105
    bandwidth: float = 2.0
    ste_to_input: bool = True
    parametrisation: Parametrisation = "log"
    codes = "either"
    is_rescalable = True

    def __attrs_post_init__(self) -> None:
        count("JumpReLU.n_latents", self.n_latents)
        positive("JumpReLU.threshold", self.threshold)
        positive("JumpReLU.bandwidth", self.bandwidth)
        one_of("JumpReLU.parametrisation", self.parametrisation, Parametrisation)
        start_L = torch.full((self.n_latents,), float(self.threshold))
        self.stored_threshold_L = nn.Parameter(start_L.log() if self.parametrisation == "log" else start_L)

    @property
    def threshold_L(self) -> Float[Tensor, " L"]:
        """The positive threshold of each latent, whatever its parametrisation (differentiable)."""
        if self.parametrisation == "log":
            return self.stored_threshold_L.exp()
        return self.stored_threshold_L.clamp_min(0.0)

    def set_threshold_(self, threshold_L: Float[Tensor, " L"]) -> None:
        """Overwrite the thresholds, given in natural units."""
        with torch.no_grad():
            self.stored_threshold_L.copy_(threshold_L.log() if self.parametrisation == "log" else threshold_L)

    def check(self, n_latents: int) -> None:
        if n_latents != self.n_latents:
            raise BadInput(f"JumpReLU.n_latents={self.n_latents} must equal the coder's n_latents={n_latents}.")

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        return Latents.from_dense(self._jump(pre_BL, self.threshold_L), pre_BL)

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        return entries_where(above(pre_BL, self.threshold_L.detach() - self.bandwidth / 2))

    def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
        return self._jump(pre_N, gather(self.threshold_L, pattern))

    def _jump(self, pre: Float[Tensor, "*entries"], threshold: Float[Tensor, "*#entries"]) -> Float[Tensor, "*entries"]:
        z = pre.to(torch.promote_types(pre.dtype, threshold.dtype))
        f: Tensor = _JumpReLU.apply(z, threshold, self.bandwidth, self.ste_to_input)  # type: ignore[no-untyped-call]
        return f.to(pre.dtype)

    def step(self, pre: Float[Tensor, "*entries"], pattern: Pattern | None = None) -> Float[Tensor, "*entries"]:
        """`1[z > theta]` of a matrix, or of entries: its sum is a differentiable L0 (see the function `step`)."""
        threshold = self.threshold_L if pattern is None else gather(self.threshold_L, pattern)
        return step(pre, threshold, self.bandwidth, self.ste_to_input)

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "JumpReLU":
        scaled = evolve(self).to(self.stored_threshold_L)
        scaled.set_threshold_(self.threshold_L.detach() * a_L)
        return scaled

    def _apply(self, fn: Any, recurse: bool = True) -> "JumpReLU":
        # An Adam step of 7e-5 on a bfloat16 value near 1 rounds away, so half precision stops here.
        kept = self.stored_threshold_L.detach().clone()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.stored_threshold_L.dtype in (torch.bfloat16, torch.float16):
            self.stored_threshold_L.data = kept.to(self.stored_threshold_L.device, torch.float32)
        return self


def step(
    pre: Float[Tensor, "*entries"],
    threshold: Float[Tensor, "*#entries"],
    bandwidth: float,
    ste_to_input: bool = False,
) -> Float[Tensor, "*entries"]:
    """The Heaviside step `1[z > theta]` with the rectangle estimator `d/dtheta = -(1 / bandwidth) K`.

    Source: Rajamanoharan et al. 2024, section 3; Gemma Scope 2, equation 4.
    """
    fired: Tensor = _Step.apply(pre, threshold, bandwidth, ste_to_input)  # type: ignore[no-untyped-call]
    return fired
