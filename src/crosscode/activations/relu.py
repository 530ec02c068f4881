"""ReLU."""

from jaxtyping import Float
from torch import Tensor

from crosscode.activations.base import Activation
from crosscode.latents import Latents
from crosscode.module import module


@module
class ReLU(Activation):
    """`f = max(z, 0)`, as in Sparse Crosscoders (Anthropic, Oct 2024)."""

    is_rescalable = True

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        return Latents.from_dense(pre_BL.relu())
