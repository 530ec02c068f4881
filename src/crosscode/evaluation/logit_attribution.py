"""Which tokens a latent makes likelier: its direction read through a model's unembedding (the direct path).

Shapes: E latents looked at, M models, P hookpoints written, D width, V vocabulary, K tokens at either end.
"""

import re
from collections.abc import Iterable, Sequence

import attrs
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.batch import Batch
from crosscode.data.language_model import ReadOutModel
from crosscode.evaluation.names import names_of
from crosscode.evaluation.text import TextAndModels
from crosscode.models import SparseCoder

STREAM = re.compile(r"blocks\.\d+\.hook_(resid_(pre|mid|post)|in|out)")
IN_ORDER = ("in", "pre", "mid", "post", "out")  # of a layer
ADDED = re.compile(r"blocks\.\d+\.hook_(mlp|attn)_out")
AT_ONCE = 64  # latents whose logits are held at once


@attrs.frozen(eq=False)
class LogitAttribution:
    """What a latent, at its mean activation where it fires, adds to each model's logits on the direct path.

    The final norm's gain (and centring) is folded in, its division by the stream's size is left out; logits are before
    a cap on them, less their mean over the vocabulary. So signs and order mean something, and sizes beside the other
    model's.

    Attributes:
        sites: the hookpoints whose directions were added up.
        highest_EMK, lowest_EMK: tokens whose logits rise and fall most, the largest changes first.
        rise_EMK, fall_EMK: by how much.
    """

    sites: tuple[str, ...]
    highest_EMK: Int[Tensor, "E M K"]
    lowest_EMK: Int[Tensor, "E M K"]
    rise_EMK: Float[Tensor, "E M K"]
    fall_EMK: Float[Tensor, "E M K"]


def direct_sites(hookpoints: Sequence[str]) -> tuple[str, ...]:
    """The hookpoints whose directions are meant to reach the unembedding by addition alone; a model says if they do.

    Of a residual stream read at several places, the last: they are one stream. Without any, all outputs of MLPs and
    attention, which are added to it. Nothing else (a norm's output, an MLP's inside) is on the direct path.
    """
    stream = sorted((name for name in hookpoints if STREAM.fullmatch(name)), key=_depth)
    return tuple(stream[-1:] or [name for name in hookpoints if ADDED.fullmatch(name)])


def _depth(hookpoint: str) -> tuple[int, int]:
    """Layer, and place in it."""
    _, layer, name = hookpoint.split(".")
    return int(layer), IN_ORDER.index(name.removeprefix("hook_").removeprefix("resid_"))


@torch.no_grad()
def attribute_logits(
    coder: SparseCoder, data: Iterable[Batch], latents_E: Int[Tensor, " E"], mean_E: Float[Tensor, " E"], k: int = 8
) -> LogitAttribution | None:
    """Logits that some latents add.

    None where there are no models, where nothing written is on the direct path, and where a model cannot say: it does
    not make logits of its stream by a norm and a linear map, or some of what is written reaches that stream through a
    norm.

    Args:
        coder: a trained coder.
        data: with the models, at the hookpoints that the coder was trained on.
        latents_E: which latents.
        mean_E: the activation at which each is read.
        k: how many tokens at either end.
    """
    if not isinstance(data, TextAndModels):
        return None
    names, models = names_of(coder, data), data.harvester.models
    hookpoints = names.written
    sites = direct_sites(hookpoints)
    if not sites or len(models) != len(names.models) or not all(isinstance(model, ReadOutModel) for model in models):
        return None
    W_LXoDo = coder.decoder.dense().detach() / coder.scale_out_Xo[..., None]
    W_EMPD = W_LXoDo.cpu().double()[latents_E].reshape(-1, len(models), len(hookpoints), coder.decoder.d_out)
    W_EMPD = W_EMPD[:, :, [hookpoints.index(name) for name in sites]] * mean_E[:, None, None, None]
    ends: list[list[Tensor]] = []
    for m, model in enumerate(models):
        assert isinstance(model, ReadOutModel)
        gains = [model.direct_gain(name) for name in sites]
        unembed_DV = None if None in gains else model.unembedding()
        if unembed_DV is None:
            return None
        W_ED = (W_EMPD[:, m, :, : len(unembed_DV)] * W_EMPD.new_tensor(gains)[:, None]).sum(1)
        parts = [_ends(W_eD.to(unembed_DV) @ unembed_DV, k) for W_eD in W_ED.split(AT_ONCE)]
        ends.append([torch.cat(part).cpu() for part in zip(*parts)])
    rise, highest, fall, lowest = (rearrange(torch.stack(part), "M E K -> E M K") for part in zip(*ends))
    return LogitAttribution(sites, highest, lowest, rise, fall)


def _ends(logits_eV: Float[Tensor, "e V"], k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits_eV = logits_eV - logits_eV.mean(-1, keepdim=True)
    k = min(k, logits_eV.shape[-1])
    (rise, highest), (fall, lowest) = logits_eV.topk(k, dim=-1), logits_eV.topk(k, dim=-1, largest=False)
    return rise, highest, fall, lowest
