"""What is done to gradients before, and to parameters after, an optimizer step.

A gradient transform gets the coder and the parameters that have gradients; it may return the norm to log. A
constraint gets the coder.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from crosscode.activations import JumpReLU
from crosscode.checks import positive
from crosscode.errors import BadInput
from crosscode.models import SparseCoder
from crosscode.order import Effect

GradientTransform = Callable[[SparseCoder, Sequence[nn.Parameter]], Tensor | None]
Constraint = Callable[[SparseCoder], None]


@attrs.frozen
class ClipNorm:
    """Scale all gradients so that their common L2 norm is at most `max_norm`; a tied parameter counts once.

    Args:
        max_norm: the largest norm, 1.0 in every public crosscoder trainer.
    """

    effect: ClassVar[Effect] = Effect(reads={"gradients"}, amends={"gradients"})
    max_norm: float = 1.0

    def __attrs_post_init__(self) -> None:
        positive("ClipNorm.max_norm", self.max_norm)

    def __call__(self, coder: SparseCoder, parameters: Sequence[nn.Parameter]) -> Tensor:
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if norm.isfinite():  # else every gradient would become NaN, and nobody could tell whose fault it was
            nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
        return norm


def _single_site_decoder(coder: SparseCoder, who: str) -> nn.Parameter:
    W_dec_LXoDo = getattr(coder.decoder, "W_dec_LXoDo", None)
    if not isinstance(W_dec_LXoDo, nn.Parameter) or coder.activation.score_norm is not None:
        raise BadInput(f"{who} is for dense decoders whose norms play no part: unweighted SAEs and transcoders.")
    return W_dec_LXoDo


@attrs.frozen
class RemoveParallelGradient:
    """Remove each decoder vector's gradient component along itself, before Adam sees it (Gemma Scope).

    List it before `ClipNorm`, whose norm is that of the gradient that is stepped along.
    """

    effect: ClassVar[Effect] = Effect(amends={"gradients"})

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder whose decoder norms play a part."""
        _single_site_decoder(coder, "RemoveParallelGradient")

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, parameters: Sequence[nn.Parameter]) -> None:
        W = _single_site_decoder(coder, "RemoveParallelGradient")
        if W.grad is not None:
            unit = nn.functional.normalize(W, dim=-1)
            W.grad -= (W.grad * unit).sum(-1, keepdim=True) * unit


@attrs.frozen
class UnitNormDecoder:
    """Every decoder vector has norm 1. For unweighted SAEs only, never with decoder-norm-weighted losses."""

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder whose decoder norms play a part."""
        _single_site_decoder(coder, "UnitNormDecoder")

    def check_start(self, init: Sequence[object]) -> None:
        """Raise `BadInput` for a start that goes by decoder vectors of another norm."""
        for strategy in init:
            norm = getattr(strategy, "decoder_norm", 1.0)
            if norm != 1.0:
                lengths = "the lengths that it draws" if norm is None else f"norm {norm:g}"
                raise BadInput(
                    f"constraints: UnitNormDecoder undoes what {type(strategy).__name__} has done, which goes by "
                    f"decoder vectors of {lengths}: start with AnthropicTranspose(norm=1.0), or leave it out."
                )

    @torch.no_grad()
    def __call__(self, coder: SparseCoder) -> None:
        W = _single_site_decoder(coder, "UnitNormDecoder")
        W.copy_(nn.functional.normalize(W, dim=-1))


@attrs.frozen
class NonNegativeThresholds:
    """Raw-parametrised thresholds stay at or above 0.

    Args:
        jumprelu: the coder's own activation, with `parametrisation="raw"`.
    """

    jumprelu: JumpReLU

    @torch.no_grad()
    def __call__(self, coder: SparseCoder) -> None:
        if self.jumprelu.parametrisation == "raw":
            self.jumprelu.stored_threshold_L.clamp_min_(0.0)
