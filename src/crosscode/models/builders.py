"""The coders of the literature, each a few lines of composition."""

from collections.abc import Sequence

from crosscode.activations import Activation
from crosscode.models.coder import SparseCoder
from crosscode.models.decoders import CausalDecoder, DenseDecoder
from crosscode.models.encoders import DenseEncoder, PerSiteEncoder
from crosscode.models.skip import LinearSkip


def sae(d_model: int, n_latents: int, activation: Activation) -> SparseCoder:
    """A sparse autoencoder: one model, one hookpoint, crosscoding dimensions `()`.

    Args:
        d_model: width of the activations (`D`).
        n_latents: how many latents (`L`).
        activation: any activation.
    """
    return SparseCoder(DenseEncoder((), d_model, n_latents), activation, DenseDecoder(n_latents, (), d_model))


def transcoder(
    d_in: int, n_latents: int, activation: Activation, d_out: int | None = None, skip: bool = False
) -> SparseCoder:
    """A transcoder: reads one site (an MLP's input), writes another (the MLP's output).

    Args:
        d_in: width read (`Di`).
        n_latents: how many latents (`L`).
        activation: any activation.
        d_out: width written (`Do`); `d_in` if not given.
        skip: whether a linear skip from input to output is learned beside the latents.
    """
    d_out = d_in if d_out is None else d_out
    return SparseCoder(
        DenseEncoder((), d_in, n_latents),
        activation,
        DenseDecoder(n_latents, (), d_out),
        LinearSkip((), d_in, (), d_out) if skip else None,
    )


def acausal_crosscoder(
    *,
    n_models: int,
    n_hookpoints: int,
    d_model: int,
    n_latents: int,
    activation: Activation,
    widths_X: Sequence[int] | None = None,
) -> SparseCoder:
    """An acausal crosscoder over `(n_models, n_hookpoints)`: every latent reads and writes every site.

    With `n_models=2, n_hookpoints=1` a model-diffing crosscoder; with `n_models=1` a cross-layer crosscoder.

    Args:
        n_models: how many models (`M`).
        n_hookpoints: how many hookpoints (`P`).
        d_model: width of the activations (`D`), the widest if they differ.
        n_latents: how many latents (`L`).
        activation: any activation.
        widths_X: real width of each (model, hookpoint), row-major, where they differ.
    """
    dims = (n_models, n_hookpoints)
    widths = None if widths_X is None else tuple(widths_X)
    return SparseCoder(
        DenseEncoder(dims, d_model, n_latents, widths_Xi=widths),
        activation,
        DenseDecoder(n_latents, dims, d_model, widths_Xo=widths),
    )


def cross_layer_transcoder(
    d_model: int,
    n_targets: int,
    n_latents: int,
    activation: Activation,
    skip: bool = False,
    skip_targets: Sequence[int] = (0,),
) -> SparseCoder:
    """A cross-layer transcoder: one source site, `n_targets` target sites.

    Args:
        d_model: width of source and targets (`D`).
        n_targets: how many target hookpoints (`P`).
        n_latents: how many latents (`L`).
        activation: any activation.
        skip: whether a linear skip is learned.
        skip_targets: which targets the skip writes to: the source's own layer's output, here the first.
    """
    pairs = tuple((0, target) for target in skip_targets)
    return SparseCoder(
        DenseEncoder((), d_model, n_latents),
        activation,
        DenseDecoder(n_latents, (n_targets,), d_model),
        LinearSkip((), d_model, (n_targets,), d_model, pairs) if skip else None,
    )


def compound_cross_layer_transcoder(
    d_model: int, n_sites: int, n_latents_per_site: int, activation: Activation, skip: bool = False
) -> SparseCoder:
    """The compound CLT of Circuit Tracing (2025): each layer's latents read there and write there and above.

    Args:
        d_model: width of inputs and targets (`D`).
        n_sites: how many layers (`P`).
        n_latents_per_site: latents of each layer (`Lp`).
        activation: one activation per layer (`PerSite`), or one that selects over all.
        skip: whether each layer's input feeds the same layer's output linearly.
    """
    pairs = tuple((i, i) for i in range(n_sites))
    return SparseCoder(
        PerSiteEncoder((n_sites,), d_model, n_latents_per_site),
        activation,
        CausalDecoder(n_latents_per_site, (n_sites,), d_model),
        LinearSkip((n_sites,), d_model, (n_sites,), d_model, pairs) if skip else None,
    )
