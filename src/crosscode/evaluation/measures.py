"""What is measured of every coder, in training and on held-out tokens."""

from typing import TypeGuard

import torch
from jaxtyping import Int
from torch import Tensor

from crosscode.activations import Activation, PerSite, Thresholded
from crosscode.data import Dataloader
from crosscode.metrics import FVU, L0, DecoderCosine, DecoderNormRatio, Density, Metric, Thresholds
from crosscode.models import SparseCoder


def site_names(data: Dataloader) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Models and hookpoints along the axes of what is written; a dropped axis keeps its one name."""
    written = data.hookpoints if data.writes is None else data.writes
    return (data.model_names, (written,) if isinstance(written, str) else tuple(written))


def read_names(data: Dataloader) -> tuple[str, ...]:
    """The hookpoints that are read."""
    read = data.hookpoints if data.reads is None else data.reads
    return (read,) if isinstance(read, str) else tuple(read)


def diffs_models(coder: SparseCoder) -> bool:
    """Whether the coder writes models side by side, so that the decoders of the first two can be compared."""
    dims = coder.decoder.out_dims
    return len(dims) == 2 and dims[0] >= 2


def has_thresholds(activation: Activation) -> TypeGuard[Thresholded]:
    """Whether every latent has a threshold to be learned: a JumpReLU, or one at every site."""
    sites = activation.activations if isinstance(activation, PerSite) else [activation]
    return all(isinstance(each, Thresholded) for each in sites)


def sources_L(coder: SparseCoder) -> Int[Tensor, " L"] | None:
    """The site that each latent reads, where each reads a single one of several and sites lie end to end."""
    reads_LX = coder.encoder.reads_LXi().cpu().reshape(coder.n_latents, -1)
    source_L = reads_LX.int().argmax(-1)
    sites = source_L.unique()
    end_to_end = torch.equal(source_L, sites.repeat_interleave(-(-len(source_L) // len(sites)))[: len(source_L)])
    return source_L if reads_LX.shape[1] > 1 and (reads_LX.sum(-1) == 1).all() and end_to_end else None


def measures(coder: SparseCoder, data: Dataloader) -> list[Metric]:
    """Reconstruction, sparsity and, of a coder of several models, how its decoders differ."""
    shared_L, source_L = coder.decoder.shared_L(), sources_L(coder)
    n_shared = int(shared_L.sum()) if shared_L.any() else None
    per_site = None if source_L is None else len(source_L.unique())
    of_two_models: list[Metric] = [DecoderNormRatio(), DecoderCosine()] if diffs_models(coder) else []
    return [
        FVU(site_names(data)),
        L0(n_shared, per_site),
        Density(),
        *([Thresholds(coder.activation)] if has_thresholds(coder.activation) else []),
        *of_two_models,
    ]
