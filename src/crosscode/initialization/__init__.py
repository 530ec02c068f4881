"""Init strategies: each sets parameters or scales of a coder, if need be from data, in the order they are listed.

A strategy is any `Callable[[SparseCoder, Iterable[Batch]], None]`. Random ones draw from a generator of their own seed:
nothing touches the global random state. They draw dense tensors and let the decoder project them (`assign_`), so
tying comes first, the encoder is derived from the tied decoder, and calibration comes last.
"""

from collections.abc import Callable, Iterable

from crosscode.batch import Batch
from crosscode.initialization.data import DecoderBias, NormalizeActivations
from crosscode.initialization.jumprelu import JanUpdate, JumpReLUWithoutBias
from crosscode.initialization.weights import (
    AnthropicTranspose,
    CLTUniform,
    IdenticalLatents,
    OrthogonalSkip,
    SameAcrossSites,
    StartFrom,
    ZeroDecoderSkip,
)
from crosscode.models import SparseCoder

InitStrategy = Callable[[SparseCoder, Iterable[Batch]], None]

__all__ = [
    "AnthropicTranspose",
    "CLTUniform",
    "DecoderBias",
    "IdenticalLatents",
    "InitStrategy",
    "JanUpdate",
    "JumpReLUWithoutBias",
    "NormalizeActivations",
    "OrthogonalSkip",
    "SameAcrossSites",
    "StartFrom",
    "ZeroDecoderSkip",
]
