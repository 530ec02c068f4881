"""What an activation is."""

from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from crosscode.kernels.pattern import Pattern
from crosscode.latents import Latents
from crosscode.one_definition import OneDefinition, definition, form_of, true_of
from crosscode.protocols import Structural

ScoreNorm = Literal["l1_of_l2", "l2"]
Codes = Literal["dense", "sparse", "either"]


class Activation(OneDefinition, nn.Module):
    """Pre-activations in, latents out. Subclass it with `@module` and write `forward`; the rest follows.

    `codes` says in which form the latents may travel:

    - `dense`: as `forward` gives them.
    - `sparse`: those of a `Selection`, with sparse gradients.
    - `either`: `forward` gives dense codes; `select` says where a value or a gradient may differ from 0 and
      `of_entries` gives the values there. The trainer takes whichever form is faster at the density it measures.

    An activation is *rescalable* if `rescaled(a_L)` of `a_L * z` gives `a_L` times the latents of `z`, decoder norms
    being 1 from then on. It says `is_rescalable = True`; others are exported without unit decoder norms.
    """

    needs_calibration: bool = False

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        """The latents of a batch of pre-activations (which include the bias)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    @property
    @true_of("forward")
    def codes(self) -> Codes:
        """In which form the latents may travel."""
        return "dense"

    @form_of("forward")
    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        """Where a value or gradient may differ from 0."""
        raise NotImplementedError(f"{type(self).__name__} has dense codes only")

    @form_of("forward")
    def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
        """The latents of selected pre-activations, given which latent each belongs to."""
        raise NotImplementedError(f"{type(self).__name__} has dense codes only")

    @property
    @true_of("forward")
    def kept_of_each_token(self) -> int | None:
        """k, if `select` keeps the k highest positive scores of every token and does nothing else."""
        return None

    @property
    @true_of("forward")
    def is_rescalable(self) -> bool:
        """Whether there is a `rescaled`."""
        return False

    @true_of("forward")
    def rescaled(self, a_L: Float[Tensor, " L"]) -> "Activation":
        """The activation for pre-activations multiplied by `a_L`: a new one where it has parameters."""
        return self

    @property
    def score_norm(self) -> ScoreNorm | None:
        """How decoder norms weigh the scores that latents are ranked by; None if they do not."""
        return None

    def latents_of(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Latents:
        """Sparse latents of selected pre-activations."""
        return Latents.from_entries(self.of_entries(pre_N, pattern), pattern, pre_N)

    def check(self, n_latents: int) -> None:
        """Refuse a number of latents that this activation cannot serve."""

    def at_step(self, step: int, num_steps: int) -> None:
        """The trainer says which step of how many begins."""

    def begin_calibration(self, n_tokens: int) -> None:
        """From now on remember what inference thresholds are to be computed from: of so many tokens, in batches."""

    def end_calibration(self) -> None:
        """Set inference thresholds from what was seen since `begin_calibration`."""


class Selection(Activation):
    """Latents equal the pre-activation where they are kept, and 0 elsewhere. Write `select`; the rest follows.

    Codes always travel sparse and have sparse gradients; no gradient goes through the choice.
    """

    codes = "sparse"

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        pattern = self.select(pre_BL, score_norms_L)
        return self.latents_of(pattern.of(pre_BL), pattern)

    @definition
    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        """Which entries are kept."""
        raise NotImplementedError(f"{type(self).__name__} has no select")

    @definition
    def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
        """The latents of the kept entries: their pre-activations, where nothing else is written."""
        return pre_N

    @property
    @true_of("forward", "select")
    def kept_of_each_token(self) -> int | None:
        return None

    @property
    @true_of("forward", "select", "of_entries")
    def is_rescalable(self) -> bool:
        return False

    @true_of("forward", "select", "of_entries")
    def rescaled(self, a_L: Float[Tensor, " L"]) -> Activation:
        return self


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
