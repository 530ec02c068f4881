"""What a run knows beside parameters and optimizer moments."""

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from crosscode.latents import Latents


@attrs.define(eq=False)
class TrainState:
    """Everything that changes during training and is not in the model, the optimizer or the data.

    Attributes:
        tokens_since_fired_L: for how many tokens each latent has been silent.
        step: optimizer steps done.
        tokens: tokens trained on.
        cursor: where in the data the next batch begins; empty at the very beginning.
    """

    tokens_since_fired_L: Int[Tensor, " L"]
    step: int = 0
    tokens: int = 0
    cursor: dict[str, int] = attrs.field(factory=dict)

    @classmethod
    def fresh(cls, n_latents: int, device: torch.device) -> "TrainState":
        """The state before the first step: nothing trained, no latent dead."""
        return cls(torch.zeros(n_latents, dtype=torch.int64, device=device))

    @torch.no_grad()
    def observe(self, latents: Latents) -> None:
        """Count a micro-batch, in place: latents that fired start from 0 again."""
        self.tokens_since_fired_L += len(latents)
        self.tokens_since_fired_L.masked_fill_(latents.fired_L(), 0)
        self.tokens += len(latents)
