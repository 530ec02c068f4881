"""Metrics: sums first, divide once, so that many batches give what one big batch would.

A metric is a frozen description; `start()` gives an accumulator with `add(trace)` and `result()`. One batch makes a
training curve, a held-out set an evaluation. All are of scaled space.
"""

from crosscode.metrics.base import Accumulator, Metric, SiteNames, measure
from crosscode.metrics.firing import L0, Dead, Density
from crosscode.metrics.reconstruction import FVU, ReconstructionBias
from crosscode.metrics.weights import DecoderCosine, DecoderNormRatio, Thresholds, delta_norm, relative_norm

__all__ = [
    "FVU",
    "L0",
    "Accumulator",
    "Dead",
    "DecoderCosine",
    "DecoderNormRatio",
    "Density",
    "Metric",
    "ReconstructionBias",
    "SiteNames",
    "Thresholds",
    "delta_norm",
    "measure",
    "relative_norm",
]
