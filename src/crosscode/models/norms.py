"""How a latent's decoder norms over sites combine into one weight."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from crosscode.checks import one_of

DecoderNorm = Literal["l1_of_l2", "l2", "single_model", "none"]


def combined_norm_L(norms_LXo: Float[Tensor, "L *Xo"], norm: DecoderNorm) -> Float[Tensor, " L"]:
    """The weight `a_L` of each latent in penalties and scores.

    Args:
        norms_LXo: norm of each latent's decoder at each site.
        norm: `l1_of_l2` sums the sites' norms, which keeps the loss comparable with separate SAEs and shows
            model- or layer-exclusive latents; `l2` is the norm of the concatenated decoder, which optimises the
            global trade-off of error and L0 (both: Sparse Crosscoders, Oct 2024; Circuit Tracing uses `l2`);
            `single_model` sums over the hookpoints of one model, the mean over models of `l1_of_l2` (the February
            2025 update's weight of shared latents, whose decoders are equal); `none` is 1.

    Raises:
        BadInput: `norm` is none of these.
    """
    one_of("norm", norm, DecoderNorm)
    norms_LX = rearrange(norms_LXo, "L ... -> L (...)")
    if norm == "l1_of_l2":
        return norms_LX.sum(-1)
    if norm == "l2":
        a_L: Tensor = torch.linalg.vector_norm(norms_LX, dim=-1)
        return a_L
    if norm == "single_model":
        n_models = norms_LXo.shape[1] if norms_LXo.ndim > 1 else 1
        return norms_LX.sum(-1) / n_models
    return torch.ones_like(norms_LX[:, 0])
