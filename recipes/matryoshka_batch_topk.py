"""Matryoshka BatchTopK: nested prefixes of the latents each reconstruct on their own, general latents first.

Sources: Bussmann et al., "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", 2025 (one BatchTopK over
all latents, the losses of all prefixes summed); SAELens (AuxK for the latents that each prefix adds).

    python recipes/matryoshka_batch_topk.py --prefixes 64 256 1024
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import BatchTopK
from crosscode.initialization import NormalizeActivations, SameAcrossSites
from crosscode.losses import MatryoshkaSquaredError
from crosscode.models import DenseDecoder, DenseEncoder
from crosscode.penalties import AuxK
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm


def matryoshka_batch_topk(
    run: RunOptions = RunOptions(models=("embedded:tuned",)),
    n_latents: int = 1024,
    prefixes: tuple[int, ...] = (),
    k: int = 16,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    decoder_norm: float = 1.0,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Matryoshka BatchTopK SAE or crosscoder with AuxK per level (Bussmann et al. 2025).

    Args:
        run: one model and hookpoint for an SAE, several for a crosscoder, data and output.
        n_latents: how many latents (Bussmann et al.: 16 x d_model).
        prefixes: how many latents each prefix has, ascending, the last all of them; a 16th, 8th, quarter, half and all
            of them if not given (Bussmann et al.: about these).
        k: latents per token, on average over a batch (Bussmann et al.: 20 to 160).
        aux_k: weight of the auxiliary losses on dead latents (Gao et al. 2024: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al. 2024).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        decoder_norm: norm of each latent's decoder at each site at the start (Minder et al. 2025: 1.0).
        lr: Adam's learning rate (Bussmann et al.: 3e-4, for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    levels = prefixes or tuple(dict.fromkeys(max(1, n_latents // part) for part in (16, 8, 4, 2, 1)))
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=BatchTopK(k),
        decoder=DenseDecoder(n_latents, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
    ).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead, prefixes=levels)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), SameAcrossSites(norm=decoder_norm, seed=run.seed)],
        loss=MatryoshkaSquaredError(levels),
        penalties={"aux_k": Weighted(aux, aux_k)},
        optimizer=run.adam(coder),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(matryoshka_batch_topk)
