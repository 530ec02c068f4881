"""What an activation is."""

from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from crosscode.kernels.pattern import Pattern
from crosscode.latents import Latents
from crosscode.protocols import Structural

ScoreNorm = Literal["l1_of_l2", "l2"]
Codes = Literal["dense", "sparse", "either"]


class Activation(nn.Module):
    """Pre-activations in, latents out. Subclass it and write `forward`; the rest has defaults that do nothing.

    `codes` says in which form the latents may travel:

    - `dense`: only `forward` is written.
    - `sparse`: a *selection*, whose latents equal the pre-activation where they are kept and 0 elsewhere. It writes
      `select` instead; its codes always travel sparse and its gradients are sparse.
    - `either`: `forward` gives dense codes; `select` says where a value or a gradient may differ from 0 and
      `of_entries` gives the values there. The trainer takes whichever form is faster at the density it measures.

    An activation is *rescalable* if `rescaled(a_L)` of `a_L * z` gives `a_L` times the latents of `z`, decoder norms
    being 1 from then on. It sets `is_rescalable`; others are exported without unit decoder norms.
    """

    codes: Codes = "dense"
    is_rescalable: bool = False
    needs_calibration: bool = False

    @property
    def score_norm(self) -> ScoreNorm | None:
        """How decoder norms weigh the scores that latents are ranked by; None if they do not."""
        return None

    @property
    def kept_of_each_token(self) -> int | None:
        """k, if `select` keeps the k highest positive scores of every token and does nothing else."""
        return None

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        """The latents of a batch of pre-activations (which include the bias)."""
        pattern = self.select(pre_BL, score_norms_L)
        return self.latents_of(pattern.of(pre_BL), pattern)

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        """Which entries a selection keeps, or where a value or gradient may differ from 0."""
        raise NotImplementedError(f"{type(self).__name__} has dense codes only")

    def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
        """The latents of selected pre-activations, given which latent each belongs to."""
        return pre_N

    def latents_of(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Latents:
        """Sparse latents of selected pre-activations."""
        return Latents.from_entries(self.of_entries(pre_N, pattern), pattern, pre_N)

    def check(self, n_latents: int) -> None:
        """Refuse a number of latents that this activation cannot serve."""

    def at_step(self, step: int, num_steps: int) -> None:
        """The trainer says which step of how many begins."""

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "Activation":
        """The activation for pre-activations multiplied by `a_L`: a new one where it has parameters."""
        return self

    def begin_calibration(self, n_tokens: int) -> None:
        """From now on remember what inference thresholds are to be computed from: of so many tokens, in batches."""

    def end_calibration(self) -> None:
        """Set inference thresholds from what was seen since `begin_calibration`."""


@runtime_checkable
class Thresholded(Protocol, metaclass=Structural):
    """An activation with a positive threshold for each latent: a `JumpReLU`, or one for each site."""

    @property
    def threshold_L(self) -> Tensor: ...

    def step(self, pre: Tensor, pattern: Pattern | None = None) -> Tensor:
        """`1[z > theta]` of a matrix, or of the entries of a pattern, differentiable by an estimator."""
        ...


def scores(pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None) -> Float[Tensor, "B L"]:
    """What latents are ranked by: `z * a`, without a graph; only positive scores are ever kept."""
    return pre_BL.detach() if score_norms_L is None else pre_BL.detach() * score_norms_L.detach()
