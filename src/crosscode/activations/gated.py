"""Gated latents: one function of the encoder says which fire, another how strongly."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscode.activations.base import Activation
from crosscode.checks import count
from crosscode.errors import BadInput
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import above, entries_where
from crosscode.kernels.sparse import gather
from crosscode.latents import Latents
from crosscode.module import evolve, module


@module
class Gated(Activation):
    """`f = 1[z + b_gate > 0] * ReLU(exp(r_mag) z + b_mag)` (Rajamanoharan et al. 2024, Gated SAEs, equations 5 to 7).

    `z` is the encoder's product without a bias: gate and magnitude have biases of their own, and share its directions
    up to a factor each. No gradient of `f` goes through the gate: `GateSparsity` and `GateReconstruction` train it. The
    paper's pre-encoder bias, `x - b_dec`, is left out: it adds a constant to `z`, which both biases can take up.

    Args:
        n_latents: how many latents (`L`).
    """

    n_latents: int
    codes = "either"
    is_rescalable = True

    def __attrs_post_init__(self) -> None:
        count("Gated.n_latents", self.n_latents)
        self.b_gate_L = nn.Parameter(torch.zeros(self.n_latents))
        self.r_mag_L = nn.Parameter(torch.zeros(self.n_latents))
        self.b_mag_L = nn.Parameter(torch.zeros(self.n_latents))

    def check(self, n_latents: int) -> None:
        if n_latents != self.n_latents:
            raise BadInput(f"Gated.n_latents={self.n_latents} must equal the coder's n_latents={n_latents}.")

    def gate(self, pre: Float[Tensor, "*entries"], pattern: Pattern | None = None) -> Float[Tensor, "*entries"]:
        """`z + b_gate` of a matrix, or of the entries of a pattern: a latent fires where it is positive."""
        return pre + (self.b_gate_L if pattern is None else gather(self.b_gate_L, pattern))

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        magnitude_BL = (self.r_mag_L.exp() * pre_BL + self.b_mag_L).relu()
        return Latents.from_dense(magnitude_BL * (self.gate(pre_BL) > 0), pre_BL)

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        return entries_where(above(pre_BL, -self.b_gate_L.detach()))

    def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
        magnitude_N = (gather(self.r_mag_L.exp(), pattern) * pre_N + gather(self.b_mag_L, pattern)).relu()
        return magnitude_N * (self.gate(pre_N, pattern) > 0)

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "Gated":
        scaled = evolve(self).to(self.b_gate_L)
        with torch.no_grad():
            scaled.r_mag_L.copy_(self.r_mag_L)
            scaled.b_gate_L.copy_(self.b_gate_L * a_L)
            scaled.b_mag_L.copy_(self.b_mag_L * a_L)
        return scaled
