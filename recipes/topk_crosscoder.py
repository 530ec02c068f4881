"""TopK-style crosscoder: TopK, BatchTopK or GroupMax, with AuxK for dead latents.

Sources: Gao et al. 2024 (TopK, AuxK); Bussmann et al. 2024 (BatchTopK); Minder et al. 2025 (BatchTopK crosscoders:
latents ranked by decoder-norm-weighted scores, which discourages splitting a concept into two one-sided latents).

    python recipes/topk_crosscoder.py --style batch_topk
    python recipes/topk_crosscoder.py --models embedded:base embedded:tuned --hookpoints blocks.2.hook_resid_post
"""

from typing import Literal

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import BatchTopK, GroupMax, TopK
from crosscode.initialization import NormalizeActivations, SameAcrossSites
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, TiedEncoder
from crosscode.penalties import AuxK
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm

STYLES = {"topk": TopK, "batch_topk": BatchTopK, "groupmax": GroupMax}


def topk_crosscoder(
    run: RunOptions = RunOptions(hookpoints=tuple(f"blocks.{i}.hook_resid_post" for i in (1, 2, 3))),
    style: Literal["topk", "batch_topk", "groupmax"] = "batch_topk",
    n_latents: int = 1024,
    k: int = 24,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    decoder_norm: float = 1.0,
    tied: bool = False,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """TopK-style crosscoder with AuxK (Gao et al. 2024; Bussmann et al. 2024; Minder et al. 2025).

    Args:
        run: models, data and output.
        style: k latents per token, k on average over a batch, or the largest of each of k groups.
        n_latents: how many latents (Minder et al.: 32 x d_model).
        k: latents per token (Minder et al.: 100 of 73,728).
        aux_k: weight of the auxiliary loss on dead latents (Gao et al.: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al.).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        decoder_norm: norm of each latent's decoder at each site at the start (Minder et al.: 1.0).
        tied: read with the decoder's directions, transposed, instead of weights of its own (the literature: untied).
        lr: Adam's learning rate (2e-4 / sqrt(n_latents / 16384) in the literature, for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    decoder = DenseDecoder(n_latents, data.out_dims, data.d_out, widths_Xo=data.widths_Xo)
    untied = DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi)
    coder = SparseCoder(TiedEncoder(decoder) if tied else untied, STYLES[style](k), decoder).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead)
    return Trainer(
        model=coder,
        data=data,
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
    main(topk_crosscoder)
