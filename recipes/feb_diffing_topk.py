"""Model diffing with designated shared latents, TopK-style: shared and exclusive latents have budgets of their own.

Source: "Insights on Crosscoder Model Diffing", Anthropic, February 2025. Its reduced penalty on shared latents becomes
a budget of their own (`--pricing budgets`), a reduced price in a joint selection (`price`), or tying alone (`none`).

    python recipes/feb_diffing_topk.py --style batch_topk
"""

from typing import Literal

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import BatchTopK, GroupMax, Priced, SeparateBudgets, TopK
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseEncoder, SharedDecoder
from crosscode.penalties import AuxK
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm

STYLES = {"topk": TopK, "batch_topk": BatchTopK, "groupmax": GroupMax}


def feb_diffing_topk(
    run: RunOptions = RunOptions(models=("embedded:base", "embedded:tuned")),
    style: Literal["topk", "batch_topk", "groupmax"] = "batch_topk",
    pricing: Literal["budgets", "price", "none"] = "budgets",
    n_latents: int = 1024,
    n_shared: int = 256,
    k_shared: int = 16,
    k_exclusive: int = 8,
    price: float = 0.15,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    decoder_norm: float = 1.0,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Model diffing with shared latents and TopK-style activations (after the February 2025 update, Anthropic).

    Args:
        run: two or more models, data and output; reports compare the first two.
        style: k latents per token, k on average over a batch, or the largest of each of k groups.
        pricing: how shared latents are favoured: a budget of their own, a reduced price, or not at all.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        n_shared: how many of them are shared (the update: "a small set").
        k_shared: shared latents per token (the budgets are this library's own: the update has a penalty instead).
        k_exclusive: exclusive latents per token (as k_shared).
        price: with `--pricing price`, what a shared latent's score is divided by (the update's ratio: 0.1 to 0.2).
        aux_k: weight of the auxiliary loss on dead latents (Gao et al. 2024: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al. 2024).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        decoder_norm: norm of each latent's decoder at each site at the start (Minder et al. 2025: 1.0).
        lr: Adam's learning rate (the literature: 2e-4 / sqrt(n_latents / 16384), for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    topk = STYLES[style]
    joint = topk(k_shared + k_exclusive)
    activation = Priced(joint, n_shared, price) if pricing == "price" else joint
    if pricing == "budgets":
        activation = SeparateBudgets(topk(k_shared), topk(k_exclusive), n_shared)
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=activation,
        decoder=SharedDecoder(n_latents, n_shared, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
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
    main(feb_diffing_topk)
