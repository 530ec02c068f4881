"""Causal crosscoder: each latent reads one layer and writes that layer and later ones, or later ones alone.

Sources: "Sparse Crosscoders", Anthropic, October 2024 (weakly and strictly causal variants); Gemma Scope 2, section 2.6
(weakly causal: an encoder of a single layer, a decoder of that layer or any later one).

    python recipes/causal_crosscoder.py --style weak
"""

from typing import Literal

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import BatchTopK, PerSite
from crosscode.errors import BadInput
from crosscode.initialization import AnthropicTranspose, NormalizeActivations, ZeroDecoderSkip
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, MaskedDecoder, MaskedEncoder, SiteMask
from crosscode.penalties import AuxK
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm


def causal_crosscoder(
    run: RunOptions = RunOptions(hookpoints=tuple(f"blocks.{i}.hook_resid_post" for i in (1, 2, 3))),
    style: Literal["weak", "strict", "acausal"] = "weak",
    n_latents: int = 512,
    k: int = 8,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    decoder_norm: float = 1.0,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Causal crosscoder with BatchTopK and AuxK (Anthropic, October 2024; Gemma Scope 2).

    Args:
        run: one or more models, hookpoints in the order of the layers, and output.
        style: `weak`, a latent reads a layer and writes it and later ones; `strict`, later ones alone, so that no
            latent writes the first layer, and decoders start at zero, as a transcoder's do; `acausal`, it reads and
            writes all.
        n_latents: latents of each layer (Gemma Scope 2: 64k to 1M over 4 layers).
        k: latents per token of each layer, on average over a batch; each layer has a budget of its own, since latents
            that write fewer layers would lose against others (Gemma Scope 2: an L0 of 50 or 150 over 4 layers).
        aux_k: weight of the auxiliary loss on dead latents (Gao et al. 2024: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al. 2024).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        decoder_norm: weak, acausal: norm of each latent's decoder at each site at the start (Minder et al.: 1.0).
        lr: Adam's learning rate (the literature: 2e-4 / sqrt(n_latents / 16384), for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    if len(run.hookpoints) < 2:
        raise BadInput(f"hookpoints={run.hookpoints}: a causal crosscoder needs at least two, of successive layers.")
    n_models, n_layers = data.in_dims

    def sites(layers: range) -> list[int]:
        """The row-major numbers of layers, in every model."""
        return [model * n_layers + layer for model in range(n_models) for layer in layers]

    start = AnthropicTranspose(norm=decoder_norm, seed=run.seed)
    if style == "acausal":
        activation, n_all = BatchTopK(k * n_layers), n_latents * n_layers
        encoder = DenseEncoder(data.in_dims, data.d_in, n_all, widths_Xi=data.widths_Xi)
        decoder = DenseDecoder(n_all, data.out_dims, data.d_out, widths_Xo=data.widths_Xo)
    else:
        later = 1 if style == "strict" else 0
        sources = range(n_layers - later)
        activation = PerSite([BatchTopK(k, weighted=style == "weak") for _ in sources])
        reads = SiteMask([(n_latents, sites(range(i, i + 1))) for i in sources])
        writes = SiteMask([(n_latents, sites(range(i + later, n_layers))) for i in sources])
        encoder = MaskedEncoder(data.in_dims, data.d_in, reads, widths_Xi=data.widths_Xi)
        decoder = MaskedDecoder(writes, data.out_dims, data.d_out, widths_Xo=data.widths_Xo)
        start = ZeroDecoderSkip(seed=run.seed) if style == "strict" else start
    coder = SparseCoder(encoder, activation, decoder).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead, norm="none" if style == "strict" else "l1_of_l2")
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), start],
        loss=SummedSquaredError(),
        penalties={"aux_k": Weighted(aux, aux_k)},
        optimizer=run.adam(coder),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(causal_crosscoder)
