"""Sparsity penalties and auxiliary losses: each a function of the `Trace`, a mean over the tokens of the micro-batch.

`norm` says how decoder norms weigh each latent (see `crosscode.models.combined_norm_L`); `latents` restricts a
penalty to a contiguous range of latents.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from crosscode.models import Trace
from crosscode.penalties.dead import AuxK, CountsDead, PreActivation
from crosscode.penalties.diffing import DeltaReconstruction, DifferenceWeighting
from crosscode.penalties.gated import GateReconstruction, GateSparsity
from crosscode.penalties.sparsity import (
    ExpectedL0,
    FrequencyL0,
    L0Quadratic,
    L0QuadraticRelative,
    L1OfNorms,
    LpOfNorms,
    TanhFrequency,
    TanhSparsity,
)

SparsityPenalty = Callable[[Trace], Float[Tensor, ""]]

__all__ = [
    "AuxK",
    "CountsDead",
    "DeltaReconstruction",
    "DifferenceWeighting",
    "ExpectedL0",
    "FrequencyL0",
    "GateReconstruction",
    "GateSparsity",
    "L0Quadratic",
    "L0QuadraticRelative",
    "L1OfNorms",
    "LpOfNorms",
    "PreActivation",
    "SparsityPenalty",
    "TanhFrequency",
    "TanhSparsity",
]
