"""What is measured of every coder, in training and on held-out tokens."""

from collections.abc import Iterable, Mapping
from typing import TypeGuard

from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from crosscode.activations import Activation, PerSite, Thresholded
from crosscode.batch import Batch
from crosscode.evaluation.names import Names, names_of
from crosscode.metrics import FVU, L0, DecoderCosine, DecoderNormRatio, Density, Metric, Thresholds
from crosscode.models import SparseCoder


def has_thresholds(activation: Activation) -> TypeGuard[Thresholded]:
    """Whether every latent has a threshold to be learned: a JumpReLU, or one at every site."""
    sites = activation.activations if isinstance(activation, PerSite) else [activation]
    return all(isinstance(each, Thresholded) for each in sites)


def by_construction(coder: SparseCoder, names: Names) -> dict[str, Tensor]:
    """What encoder and decoder say of each latent, whatever the weights; what holds for no latent is left out.

    Returns:
        `shared_L`: it writes the same to every model. `dedicated_L`: the number of the one model that it can write, or
        -1. `source_L`, where every latent reads a single site of several: its number.
    """
    known: dict[str, Tensor] = {}
    if names.compares_models:
        writes_LM = rearrange(coder.decoder.writes_LXo().cpu(), "L M ... -> L M (...)").any(-1)
        shared_L, dedicated_L = coder.decoder.shared_L().cpu(), writes_LM.int().argmax(-1)
        dedicated_L = dedicated_L.masked_fill(writes_LM.sum(-1) != 1, -1)
        known |= {"shared_L": shared_L} if shared_L.any() else {}
        known |= {"dedicated_L": dedicated_L} if (dedicated_L >= 0).any() else {}
    reads_LX = rearrange(coder.encoder.reads_LXi().cpu(), "L ... -> L (...)")
    if reads_LX.shape[1] > 1 and (reads_LX.sum(-1) == 1).all():
        known["source_L"] = reads_LX.int().argmax(-1)
    return known


def _groups(known: Mapping[str, Tensor], names: Names) -> dict[str, Bool[Tensor, " L"]]:
    """Latents whose L0 is told apart."""
    groups: dict[str, Tensor] = {}
    if "shared_L" in known:
        groups |= {"shared": known["shared_L"], "exclusive": ~known["shared_L"]}
    if "dedicated_L" in known:
        groups |= {f"dedicated_{model}": known["dedicated_L"] == m for m, model in enumerate(names.models)}
    if "source_L" in known:
        groups |= {f"site_{p}": known["source_L"] == p for p in range(int(known["source_L"].max()) + 1)}
    return groups


def measures(coder: SparseCoder, data: Iterable[Batch]) -> list[Metric]:
    """Reconstruction, sparsity and, of a coder of several models, how its decoders differ.

    Args:
        coder: what is measured.
        data: what it is measured on; see `names_of`.
    """
    names = names_of(coder, data)
    of_two_models: list[Metric] = [DecoderNormRatio(), DecoderCosine()] if names.compares_models else []
    return [
        FVU(names.of_sites),
        L0(_groups(by_construction(coder, names), names)),
        Density(),
        *([Thresholds(coder.activation)] if has_thresholds(coder.activation) else []),
        *of_two_models,
    ]
