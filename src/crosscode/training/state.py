"""What a run knows beside parameters and optimizer moments."""

from typing import Any

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from crosscode.activations import Activation
from crosscode.latents import Latents

# Sparse codes become faster below the first density and slower above the second. On CPU the two cost the same at about
# 17 % (B = 2048, D = 512, L = 8192); on GPU this has not been measured, and dense products have tensor cores.
FASTER = {"cpu": (0.10, 0.14), "gpu": (0.01, 0.02)}
MEASURED_TOKENS = 64  # of dense codes; sparse ones are counted whole


@attrs.define(eq=False)
class TrainState:
    """Everything that changes during training and is not in the model, the optimizer or the data.

    Attributes:
        tokens_since_fired_L: for how many tokens each latent has been silent.
        step: optimizer steps done.
        tokens: tokens trained on.
        density: share of latents x tokens, in the last batch, whose value or gradient could differ from 0.
        sparse: whether the next step's codes are sparse, where the activation leaves the choice.
        cursor: where in the data the next batch begins; empty at the very beginning.
        stopped: whether no further step is to be made (`Trainer.stop`).
    """

    tokens_since_fired_L: Int[Tensor, " L"]
    step: int = 0
    tokens: int = 0
    density: float = 1.0
    sparse: bool = False
    cursor: dict[str, Any] = attrs.field(factory=dict)
    stopped: bool = False

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

    @torch.no_grad()
    def choose_codes(self, activation: Activation, latents: Latents) -> None:
        """Measure the density of a batch's codes and choose the faster form for the next, with some inertia."""
        if latents.is_sparse or activation.codes == "dense":
            self.density = latents.density()
        else:  # where a gradient may flow counts too; codes without pre-activations say that themselves
            some_BL = (latents.values if latents.pre is None else latents.pre)[:MEASURED_TOKENS]
            self.density = len(activation.select(some_BL)) / some_BL.numel()
        sparse_below, dense_above = FASTER["cpu" if latents.values.device.type == "cpu" else "gpu"]
        self.sparse = self.density < (dense_above if self.sparse else sparse_below)
