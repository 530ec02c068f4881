"""The coders of the literature, each a few lines of composition."""

from collections.abc import Sequence

from crosscode.activations import Activation
from crosscode.checks import count
from crosscode.models.coder import SparseCoder
from crosscode.models.decoders import DenseDecoder, LowRankMaskedDecoder, MaskedDecoder
from crosscode.models.encoders import DenseEncoder, MaskedEncoder
from crosscode.models.masks import SiteMask
from crosscode.models.skip import LinearSkip
from crosscode.shapes import Dims, check_widths


def _widths(name: str, dims: Dims, width: int, widths: Sequence[int] | None) -> Dims | None:
    check_widths(name, dims, width, widths)
    return None if widths is None else tuple(widths)


def sae(d_model: int, n_latents: int, activation: Activation) -> SparseCoder:
    """A sparse autoencoder: one model, one hookpoint, crosscoding dimensions `()`.

    Args:
        d_model: width of the activations (`D`).
        n_latents: how many latents (`L`).
        activation: any activation.
    """
    return SparseCoder(DenseEncoder((), d_model, n_latents), activation, DenseDecoder(n_latents, (), d_model))


def transcoder(
    d_in: int,
    n_latents: int,
    activation: Activation,
    d_out: int | None = None,
    skip: bool = False,
    widths_Xi: Sequence[int] | None = None,
    widths_Xo: Sequence[int] | None = None,
) -> SparseCoder:
    """A transcoder: reads one site (an MLP's input), writes another (its output); no crosscoding dimensions, `()`.

    Args:
        d_in: width read (`Di`).
        n_latents: how many latents (`L`).
        activation: any activation.
        d_out: width written (`Do`); `d_in` if not given.
        skip: whether a linear skip from input to output is learned beside the latents.
        widths_Xi: `(real width,)` of the input, where it is padded to `d_in`.
        widths_Xo: `(real width,)` of the output, where it is padded to `d_out`.
    """
    d_out = d_in if d_out is None else d_out
    return SparseCoder(
        DenseEncoder((), d_in, n_latents, widths_Xi=_widths("widths_Xi", (), d_in, widths_Xi)),
        activation,
        DenseDecoder(n_latents, (), d_out, widths_Xo=_widths("widths_Xo", (), d_out, widths_Xo)),
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
    """A model-hookpoint acausal crosscoder: every latent reads and writes every site.

    Crosscoding dimensions `(n_models, n_hookpoints)` in and out. With `n_models=2, n_hookpoints=1` a model-diffing
    crosscoder, with `n_models=1` a cross-layer acausal crosscoder, with several of both a cross-model, cross-layer one.

    Args:
        n_models: how many models (`M`).
        n_hookpoints: how many hookpoints (`P`).
        d_model: width of the activations (`D`), the widest if they differ.
        n_latents: how many latents (`L`).
        activation: any activation.
        widths_X: real width of each (model, hookpoint), row-major, where they differ.
    """
    count("n_models", n_models)
    count("n_hookpoints", n_hookpoints)
    dims = (n_models, n_hookpoints)
    widths = _widths("widths_X", dims, d_model, widths_X)
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
    widths_Xi: Sequence[int] | None = None,
    widths_Xo: Sequence[int] | None = None,
) -> SparseCoder:
    """A cross-layer transcoder: one source site, crosscoding dimensions `()`, and several targets, `(n_targets,)`.

    Args:
        d_model: width of source and targets (`D`), the widest if they differ.
        n_targets: how many target hookpoints (`P`).
        n_latents: how many latents (`L`).
        activation: any activation.
        skip: whether a linear skip is learned.
        skip_targets: which targets the skip writes to: the source's own layer's output, here the first.
        widths_Xi: `(real width,)` of the source, where it is padded to `d_model`.
        widths_Xo: real width of each target, where they differ.
    """
    count("n_targets", n_targets)
    pairs = tuple((0, target) for target in skip_targets)
    return SparseCoder(
        DenseEncoder((), d_model, n_latents, widths_Xi=_widths("widths_Xi", (), d_model, widths_Xi)),
        activation,
        DenseDecoder(
            n_latents, (n_targets,), d_model, widths_Xo=_widths("widths_Xo", (n_targets,), d_model, widths_Xo)
        ),
        LinearSkip((), d_model, (n_targets,), d_model, pairs) if skip else None,
    )


def compound_cross_layer_transcoder(
    d_model: int,
    n_sites: int,
    n_latents_per_site: int,
    activation: Activation,
    skip: bool = False,
    d_out: int | None = None,
    widths_Xi: Sequence[int] | None = None,
    widths_Xo: Sequence[int] | None = None,
    rank: int | None = None,
) -> SparseCoder:
    """The compound CLT of Circuit Tracing (2025): each layer's latents read there and write there and above.

    Cross-layer transcoders side by side, one for each layer: crosscoding dimensions `(n_sites,)` in and out.

    Args:
        d_model: width of the inputs (`D`), the widest if they differ.
        n_sites: how many layers (`P`).
        n_latents_per_site: latents of each layer (`Lp`).
        activation: one activation per layer (`PerSite`), or one that selects over all.
        skip: whether each layer's input feeds the same layer's output linearly.
        d_out: width of the targets, the widest if they differ; `d_model` if not given.
        widths_Xi: real width of each layer's input, where they differ.
        widths_Xo: real width of each layer's output, where they differ.
        rank: the rank of what latents write to each later layer; None for all of it.
    """
    count("n_sites", n_sites)
    dims, pairs = (n_sites,), tuple((i, i) for i in range(n_sites))
    d_out = d_model if d_out is None else d_out
    reads = SiteMask([(n_latents_per_site, (i,)) for i in range(n_sites)])
    writes = SiteMask([(n_latents_per_site, range(i, n_sites)) for i in range(n_sites)])
    widths = _widths("widths_Xo", dims, d_out, widths_Xo)
    return SparseCoder(
        MaskedEncoder(dims, d_model, reads, widths_Xi=_widths("widths_Xi", dims, d_model, widths_Xi)),
        activation,
        MaskedDecoder(writes, dims, d_out, widths_Xo=widths)
        if rank is None
        else LowRankMaskedDecoder(writes, dims, d_out, rank, widths_Xo=widths),
        LinearSkip(dims, d_model, dims, d_out, pairs) if skip else None,
    )
