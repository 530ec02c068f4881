"""Difference SAE: a BatchTopK SAE of what fine-tuning added to the activations, token by token.

Source: the plain baseline of crosscoder model diffing: an SAE on the fine-tuned model's activations minus the base
model's. Its latents are of the difference alone: what both models share cancels out.

    python recipes/difference_sae.py
"""

from crosscode import Trainer, Weighted
from crosscode.activations import BatchTopK
from crosscode.initialization import NormalizeActivations, SameAcrossSites
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, SparseCoder
from crosscode.penalties import AuxK
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm


def difference_sae(
    run: RunOptions = RunOptions(models=("embedded:base", "embedded:tuned")),
    n_latents: int = 1024,
    k: int = 16,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    decoder_norm: float = 1.0,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """BatchTopK SAE of the second model's activations minus the first's.

    Args:
        run: two models of one width, one or more hookpoints, data and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        k: latents per token, on average over a batch (no value is given).
        aux_k: weight of the auxiliary loss on dead latents (Gao et al. 2024: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al. 2024).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        decoder_norm: norm of each latent's decoder at each site at the start (Minder et al. 2025: 1.0).
        lr: Adam's learning rate (the literature: 2e-4 / sqrt(n_latents / 16384), for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data, held_out = run.differences(), run.differences("held_out")
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents),
        activation=BatchTopK(k),
        decoder=DenseDecoder(n_latents, data.out_dims, data.d_out),
    ).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead)
    return Trainer(
        model=coder,
        data=data,
        held_out=held_out,
        init=[NormalizeActivations(run.init_tokens), SameAcrossSites(norm=decoder_norm, seed=run.seed)],
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
    main(difference_sae)
