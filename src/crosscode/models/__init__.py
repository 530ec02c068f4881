"""The coder and what it is made of: encoder, activation, decoder and an optional skip.

`SparseCoder` is the SAE, the transcoder, the crosscoder and the cross-layer transcoder: what differs is the parts.
"""

from crosscode.models.builders import (
    acausal_crosscoder,
    compound_cross_layer_transcoder,
    cross_layer_transcoder,
    sae,
    transcoder,
)
from crosscode.models.coder import SparseCoder
from crosscode.models.decoders import Decoder, DenseDecoder, LowRankMaskedDecoder, MaskedDecoder, SharedDecoder
from crosscode.models.encoders import AffineEncoder, DenseEncoder, Encoder, MaskedEncoder, SharedEncoder, TiedEncoder
from crosscode.models.masks import SiteMask
from crosscode.models.norms import DecoderNorm, combined_norm_L
from crosscode.models.skip import LinearSkip
from crosscode.models.trace import Trace

__all__ = [
    "AffineEncoder",
    "Decoder",
    "DecoderNorm",
    "DenseDecoder",
    "DenseEncoder",
    "Encoder",
    "LinearSkip",
    "LowRankMaskedDecoder",
    "MaskedDecoder",
    "MaskedEncoder",
    "SharedDecoder",
    "SharedEncoder",
    "SiteMask",
    "SparseCoder",
    "TiedEncoder",
    "Trace",
    "acausal_crosscoder",
    "combined_norm_L",
    "compound_cross_layer_transcoder",
    "cross_layer_transcoder",
    "sae",
    "transcoder",
]
