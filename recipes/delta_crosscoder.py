"""Delta-Crosscoder: some latents must reconstruct what fine-tuning changed, each kind with a budget of its own.

Source: Kassem et al., "Delta-Crosscoder", 2026, whose authors released no code; as a port from its equations has it. A
review calls the objective under-specified: this is experimental.

    python recipes/delta_crosscoder.py
"""

from typing import Literal

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import BatchTopK, SeparateBudgets
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, SharedEncoder
from crosscode.penalties import AuxK, DeltaReconstruction
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm

ENCODERS = {"mean": SharedEncoder, "each": DenseEncoder}


def delta_crosscoder(
    run: RunOptions = RunOptions(models=("embedded:base", "embedded:tuned")),
    encoder: Literal["mean", "each"] = "mean",
    n_latents: int = 1024,
    n_shared: int = 768,
    k_shared: int = 20,
    k_delta: int = 4,
    delta: float = 1.0,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    decoder_norm: float = 1.0,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Delta-Crosscoder with BatchTopK budgets and AuxK (Kassem et al. 2026).

    Args:
        run: two models, data and output.
        encoder: what latents read: the mean of the models' activations (the port), or each with weights of its own.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        n_shared: how many of them, the first ones, are no delta latents (no value is given).
        k_shared: of these, latents per token, on average over a batch (no value is given).
        k_delta: delta latents per token (no value is given).
        delta: weight of the mean squared error of the difference between the models (no value is given).
        aux_k: weight of the auxiliary loss on dead latents (Gao et al. 2024: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al. 2024).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        decoder_norm: norm of each latent's decoder at each site at the start (Minder et al. 2025: 1.0).
        lr: Adam's learning rate (the literature: 2e-4 / sqrt(n_latents / 16384), for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    coder = SparseCoder(
        encoder=ENCODERS[encoder](data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=SeparateBudgets(BatchTopK(k_shared), BatchTopK(k_delta), n_shared),
        decoder=DenseDecoder(n_latents, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
    ).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), AnthropicTranspose(norm=decoder_norm, seed=run.seed)],
        loss=SummedSquaredError(),
        penalties={
            "delta": Weighted(DeltaReconstruction(slice(n_shared, n_latents)), delta),
            "aux_k": Weighted(aux, aux_k),
        },
        optimizer=run.adam(coder),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(delta_crosscoder)
