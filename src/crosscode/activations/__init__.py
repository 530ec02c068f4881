"""Activation functions, usable with every model: pre-activations in, latents (never negative) out."""

from crosscode.activations.base import Activation, ScoreNorm, Selection, Thresholded
from crosscode.activations.gated import Gated
from crosscode.activations.jumprelu import JumpReLU, step
from crosscode.activations.partition import PerSite, Priced, SeparateBudgets
from crosscode.activations.relu import ReLU
from crosscode.activations.topk import BatchTopK, GroupMax, TopK

__all__ = [
    "Activation",
    "BatchTopK",
    "Gated",
    "GroupMax",
    "JumpReLU",
    "PerSite",
    "Priced",
    "ReLU",
    "ScoreNorm",
    "Selection",
    "SeparateBudgets",
    "Thresholded",
    "TopK",
    "step",
]
