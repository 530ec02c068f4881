"""Dedicated feature crosscoder: latents of model A alone, of model B alone, and shared ones, by construction.

Source: Jiralerspong and Bricken, "Cross-Architecture Model Diffing with Crosscoders", 2026. A dedicated latent neither
reads nor writes the other model: no weights for that exist.

    python recipes/dedicated_crosscoder.py
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import BatchTopK
from crosscode.errors import BadInput
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import MaskedDecoder, MaskedEncoder, SiteMask
from crosscode.penalties import AuxK
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm


def dedicated_crosscoder(
    run: RunOptions = RunOptions(models=("embedded:base", "embedded:tuned")),
    n_latents: int = 1024,
    n_dedicated: int = 52,
    k: int = 24,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    decoder_norm: float = 1.0,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Dedicated feature crosscoder with BatchTopK and AuxK (Jiralerspong and Bricken 2026).

    Args:
        run: two or more models, of any width, data and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        n_dedicated: how many of them are of the first model alone, and as many of each other one (ports: 5 %).
        k: latents per token, on average over a batch (the literature: 32 to 200).
        aux_k: weight of the auxiliary loss on dead latents (Gao et al. 2024: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al. 2024).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        decoder_norm: norm of each latent's decoder at each site at the start (Minder et al. 2025: 1.0).
        lr: Adam's learning rate (the literature: 2e-4 / sqrt(n_latents / 16384), for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    n_models, n_hookpoints = data.in_dims
    n_shared = n_latents - n_models * n_dedicated
    if n_shared < 1:
        raise BadInput(f"n_dedicated={n_dedicated} for each of {n_models} models leaves none of n_latents={n_latents}.")
    of_model = [range(m * n_hookpoints, (m + 1) * n_hookpoints) for m in range(n_models)]
    mask = SiteMask([*((n_dedicated, sites) for sites in of_model), (n_shared, range(n_models * n_hookpoints))])
    coder = SparseCoder(
        encoder=MaskedEncoder(data.in_dims, data.d_in, mask, widths_Xi=data.widths_Xi),
        activation=BatchTopK(k),
        decoder=MaskedDecoder(mask, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
    ).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), AnthropicTranspose(norm=decoder_norm, seed=run.seed)],
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
    main(dedicated_crosscoder)
