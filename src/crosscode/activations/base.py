"""What an activation is."""

from typing import Literal, Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from crosscode.latents import Latents

ScoreNorm = Literal["l1_of_l2", "l2"]
Entries = tuple[Int[Tensor, " N"], Int[Tensor, " B1"]]


class Activation(nn.Module):
    """Pre-activations in, latents out. Subclass it and write `forward`; the rest has defaults that do nothing.

    A *selection* is an activation whose latents equal the pre-activation where they are kept and 0 elsewhere.
    It sets `is_selection` and writes `select` instead; its codes then travel sparse and its gradients are sparse.

    An activation is *rescalable* if `rescaled(a_L)` of `a_L * z` gives `a_L` times the latents of `z`, decoder norms
    being 1 from then on. It sets `is_rescalable`; others are exported without unit decoder norms.
    """

    is_selection: bool = False
    is_rescalable: bool = False
    needs_calibration: bool = False

    @property
    def score_norm(self) -> ScoreNorm | None:
        """How decoder norms weigh the scores that latents are ranked by; None if they do not."""
        return None

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        """The latents of a batch of pre-activations (which include the bias)."""
        indices_N, offsets_B1 = self.select(pre_BL, score_norms_L)
        entries = Latents.from_entries(pre_BL.new_empty(len(indices_N)), indices_N, offsets_B1, pre_BL.shape[-1])
        return Latents.from_entries(pre_BL[entries.rows_N, indices_N], indices_N, offsets_B1, pre_BL.shape[-1])

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Entries:
        """Which entries a selection keeps: column indices and row offsets."""
        raise NotImplementedError(f"{type(self).__name__} is not a selection")

    def check(self, n_latents: int) -> None:
        """Refuse a number of latents that this activation cannot serve."""

    def at_step(self, step: int, num_steps: int) -> None:
        """The trainer says which step of how many begins."""

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "Activation":
        """The activation for pre-activations multiplied by `a_L`: a new one where it has parameters."""
        return self

    def begin_calibration(self) -> None:
        """From now on remember what inference thresholds are to be computed from."""

    def end_calibration(self) -> None:
        """Set inference thresholds from what was seen since `begin_calibration`."""


class Thresholded(Protocol):
    """An activation with a positive threshold for each latent: a `JumpReLU`, or one for each site."""

    @property
    def threshold_L(self) -> Tensor: ...


def scores(pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None) -> Float[Tensor, "B L"]:
    """What latents are ranked by: `ReLU(z) * a`, without a graph."""
    r_BL = pre_BL.detach().relu()
    return r_BL if score_norms_L is None else r_BL * score_norms_L.detach()
