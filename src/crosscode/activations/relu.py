"""ReLU."""

from jaxtyping import Float
from torch import Tensor

from crosscode.activations.base import Activation
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import above, entries_where
from crosscode.latents import Latents
from crosscode.module import module


@module
class ReLU(Activation):
    """`f = max(z, 0)`, as in Sparse Crosscoders (Anthropic, Oct 2024)."""

    codes = "either"
    is_rescalable = True

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        return Latents.from_dense(pre_BL.relu())  # `Trace.pre_BL` has pre-activations for who wants them

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        return entries_where(above(pre_BL, 0.0))

    def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
        return pre_N.relu()
